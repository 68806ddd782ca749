#!/usr/bin/env python3
"""Writes what critest pulls as OCI layouts. usage: images.py IMAGES BUSYBOX OUT, where IMAGES holds the tests' own images
and BUSYBOX is Debian's one that is not static.
Called by build; not meant to be run by hand."""
import gzip
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

from oci import Layer, write_image

images, dynamic_busybox, out = map(pathlib.Path, sys.argv[1:])


def image(name, layers, command=(), names=None, **more):
    """`names` are REPOSITORY:TAG, without the registry."""
    folder = out / name
    folder.mkdir()
    write_image(folder / "tar", f"critest/{name}", layers, command, **more)
    with tarfile.open(folder / "tar") as archive:
        archive.extractall(folder / "layout")
    (folder / "tar").unlink()
    (folder / "names").write_text("".join(f"{each}\n" for each in names or [f"k8s-staging-cri-tools/{name}:latest"]))


def read_layers(path):
    """The layers, as tar archives and lowest first, of an archive that write_image wrote."""
    with tarfile.open(path) as archive:
        def blob(digest):
            return archive.extractfile(f"blobs/sha256/{digest.removeprefix('sha256:')}").read()

        index = json.load(archive.extractfile("index.json"))
        manifest = json.loads(blob(index["manifests"][0]["digest"]))
        return [gzip.decompress(blob(layer["digest"])) if layer["mediaType"].endswith("gzip") else blob(layer["digest"])
                for layer in manifest["layers"]]


def member(layer, path):
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return archive.extractfile(path).read()


def program(layer, path, source):
    """A program of this machine, with the libraries it is linked to."""
    layer.file(path, pathlib.Path(source).read_bytes(), 0o755)
    linked = subprocess.run(["ldd", source], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"(/\S+) \(0x", linked):
        for folder in reversed(pathlib.PurePath(library).parents[:-1]):
            layer.dir(str(folder))
        layer.file(library, pathlib.Path(library).read_bytes(), 0o755)


def own_shell(base):
    """critest masks /bin/ls and expects `sh -c ls` to fail, in busybox's words, which does not go with a shell that has its commands
    built in: the busybox that has not goes over the other, and ls gets a file of its own. Neither has pgrep and ipcs."""
    layer = Layer()
    program(layer, "bin/sh", dynamic_busybox)
    program(layer, "bin/ipcs", shutil.which("ipcs"))
    layer.file("bin/ls", pathlib.Path("/bin/busybox").read_bytes(), 0o755)
    pgrep = "#!/bin/sh\nfor process in /proc/[0-9]*; do\n  read -r name < $process/comm && [ \"$name\" = \"$1\" ] && echo ${process#/proc/} && found=1\ndone 2> /dev/null\n[ $found ]\n"
    layer.file("bin/pgrep", pgrep, 0o755)
    layer.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n"
               "default-user:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")
    layer.file("etc/group", "root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\nnobody:x:65534:\n")
    layer.file("var/www/index.html", "It works!\n")
    return [*base, layer.done()]


def marked(base, mark):
    return [*base, Layer().file(mark, f"{mark}\n").done()]


busybox = read_layers(images / "busybox.tar")
base = own_shell(busybox)
image("busybox", base, ["sh"], names=["e2e-test-images/busybox:1.29-2"])
httpd = "#!/bin/sh\necho \"[notice] Command line: 'httpd -D FOREGROUND'\" >&2\nexec busybox httpd -f -p 80 -h /var/www\n"
image("httpd", [*base, Layer().file("httpd-foreground", httpd, 0o755).done()], ["/httpd-foreground"], names=["e2e-test-images/httpd:2.4.39-4"])
image("pause", read_layers(images / "pause.tar"), ["/pause"], names=["pause:3.9"])
privileged = Layer().file("nnp", member(busybox[0], "bin/effective-uid"), 0o4755).done()
image("nonewprivs", [privileged], ["/nnp"], names=["e2e-test-images/nonewprivs:1.3"])

def nginx(port):
    return Layer().file("etc/nginx/nginx.conf", f"""worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr warn;
events {{ worker_connections 64; }}
http {{ access_log /dev/stdout; server {{ listen {port}; root /srv; }} }}
""").file("srv/index.html", "<h1>Welcome to nginx!</h1>\n").done()


# GNU grep is not content with what /proc/1/cmdline holds.
grep = Layer().file("usr/local/bin/grep", dynamic_busybox.read_bytes(), 0o755).done()
debian = [*read_layers(images / "debian.tar"), grep]
serve = ["nginx", "-g", "daemon off;"]
image("nginx", [*debian, nginx(80)], serve, compress=True, names=["e2e-test-images/nginx:1.14-2"])
image("hostnet-nginx-amd64", [*debian, nginx(12003)], serve, compress=True)

group = Layer().file("etc/group", "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n").done()
image("test-image-predefined-group", [*base, group], ["sh"], user="1000")
for kind, user in [("user-uid", "1002"), ("user-username", "www-data"), ("user-uid-group", "1003:1004"), ("user-username-group", "www-data:1004")]:
    image(f"test-image-{kind}", base, ["sh"], user=user)
for kind in ["latest", "1", "2", "3"]:
    image(f"test-image-{kind}", marked(base, kind), ["sh"])
for tag in ["test", "all"]:
    image(f"test-image-tag-{tag}", marked(base, tag), ["sh"], names=[f"k8s-staging-cri-tools/test-image-tag:{tag}"])
image("test-image-tags", marked(base, "tags"), ["sh"], names=[f"k8s-staging-cri-tools/test-image-tags:{tag}" for tag in "123"])
