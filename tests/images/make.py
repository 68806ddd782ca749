#!/usr/bin/env python3
"""Writes the tests' images as OCI archives. usage: make.py WORK OUT, where WORK holds what build has prepared
(busybox, applets, pause, effective-uid, debian.tar, programs.tar). Called by build; not meant to be run by hand."""
import pathlib
import sys

from oci import Layer, write_image

work, out = map(pathlib.Path, sys.argv[1:])
PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n"
GROUP = "root:x:0:\nnogroup:x:65534:\nuser:x:1000:\nwww-data:x:33:\nextra:x:50000:user\n"


def name(image):
    return f"localhost/ravelin/{image}:latest"


def busybox_layer():
    layer = Layer()
    for folder in ("bin", "etc", "proc", "sys", "dev", "usr", "usr/bin", "sbin", "var", "var/www", "mnt", "run"):
        layer.dir(folder)
    layer.dir("root", 0o700).dir("tmp", 0o1777).dir("home").dir("home/user", uid=1000, gid=1000)
    layer.file("bin/busybox", (work / "busybox").read_bytes(), 0o755)
    for applet in (work / "applets").read_text().split():
        if applet != "busybox":
            layer.symlink(f"bin/{applet}", "busybox")
    # Says its effective user id; setuid root, for tests of no-new-privileges.
    layer.file("bin/effective-uid", (work / "effective-uid").read_bytes(), 0o4755)
    layer.file("etc/passwd", PASSWD).file("etc/group", GROUP)
    layer.file("var/www/index.html", "hello from a pod\n")
    return layer.done()


def odd_layers(base):
    """30 layers over busybox that hold what image formats can hold; the expected result is in the comments."""
    layers = [base]
    for number in range(1, 30):
        layer = Layer()
        # Each layer adds /layers/N and writes its number into /top: the last wins, 29.
        layer.dir("layers").file(f"layers/{number}", f"{number}\n").file("top", f"{number}\n")
        if number == 1:
            layer.dir("opaque").file("opaque/old", "old\n").dir("opaque/olddir").file("opaque/olddir/file", "old\n")
            layer.dir("gone").file("gone/file", "gone\n").file("replaced", "a file\n")
            layer.dir("links").file("links/a", "linked\n").hardlink("links/b", "links/a")
        if number == 5:
            layer.dir("odd").file("odd/xattr", "x\n", xattrs={"user.ravelin": "hello"})
            # CAP_NET_RAW permitted and effective, as setcap writes it (VFS_CAP_REVISION_2).
            capability = bytes.fromhex("0100000200200000000000000000000000000000").decode("latin-1")
            layer.file("odd/capable", (work / "effective-uid").read_bytes(), 0o755, xattrs={"security.capability": capability})
            layer.char_device("odd/null", 1, 3).file("odd/setuid", (work / "effective-uid").read_bytes(), 0o4755)
            layer.file("odd/owned", "mine\n", 0o640, uid=1000, gid=50000).dir("odd/sticky", 0o1777).symlink("odd/dangling", "/nowhere")
            layer.file("odd/" + "n" * 254, "a long name\n").file("odd/ünïcode \t name", "unicode\n")
        if number == 10:
            layer.whiteout("layers/3").whiteout("gone")  # /layers/3 and /gone are no more
        if number == 12:
            layer.dir("opaque").opaque("opaque").file("opaque/new", "new\n")  # /opaque holds `new` alone
        if number == 14:
            layer.whiteout("replaced")
        if number == 15:
            layer.dir("replaced").file("replaced/inside", "a folder now\n")  # a file becomes a folder
        if number == 20:
            layer.dir("gone").file("gone/again", "again\n")  # a removed folder returns with `again` alone
        layers.append(layer.done())
    return layers


class Pattern:
    """1 GiB whose every 64-byte line holds its own number: any misplaced block shows."""

    SIZE = 1 << 30

    def __init__(self):
        self._position, self._chunk = 0, b""

    def read(self, size):
        parts = []
        while size > 0 and (self._chunk or self._position < self.SIZE):
            if not self._chunk:
                first = self._position // 64
                self._chunk = b"".join(b"%063d\n" % line for line in range(first, first + 16384))
                self._position += len(self._chunk)
            part, self._chunk = self._chunk[:size], self._chunk[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


wanted = set(sys.argv[3:])
base = busybox_layer()
pause = Layer().file("pause", (work / "pause").read_bytes(), 0o755).done()
write_image(out / "pause.tar", name("pause"), [pause], (), entrypoint=("/pause",))
write_image(out / "busybox.tar", name("busybox"), [base], ("sh",))
write_image(out / "user.tar", name("user"), [base], ("sh",), user="user", workdir="/home/user", env=("GREETING=hello",))
write_image(out / "layers30.tar", name("layers30"), odd_layers(base), ("sh",), compress=True)
write_image(out / "debian.tar", name("debian"), [(work / "debian.tar").read_bytes()], ("/bin/bash",), compress=True)
(out / "on-demand").mkdir(exist_ok=True)
big = Layer().stream("big", Pattern(), Pattern.SIZE).done()
write_image(out / "on-demand" / "big.tar", name("big"), [base, big], ("sh",), compress=True)
# Not compressed: an emulated processor takes longer to undo that than to read more.
write_image(out / "on-demand" / "programs.tar", name("programs"), [(work / "programs.tar").read_bytes()], ("/bin/bash",))
