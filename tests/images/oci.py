"""A small writer of OCI image archives (image-spec 1.0 layout in one tar), enough to make the tests' images without a container engine."""
import gzip
import hashlib
import io
import json
import tarfile


class Layer:
    """One layer, written entry by entry. Times are zero, so the same entries make the same bytes."""

    def __init__(self):
        self._bytes = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._bytes, mode="w", format=tarfile.PAX_FORMAT)

    def _add(self, path, kind, mode, uid=0, gid=0, data=None, link="", xattrs=None, device=(0, 0), stream=None, size=None):
        info = tarfile.TarInfo(path.strip("/"))
        info.type, info.mode, info.uid, info.gid, info.linkname = kind, mode, uid, gid, link
        info.devmajor, info.devminor = device
        info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in (xattrs or {}).items()}
        info.size = size if size is not None else len(data or b"")
        self._tar.addfile(info, stream or (io.BytesIO(data) if data else None))
        return self

    def dir(self, path, mode=0o755, **more):
        return self._add(path, tarfile.DIRTYPE, mode, **more)

    def file(self, path, data, mode=0o644, **more):
        return self._add(path, tarfile.REGTYPE, mode, data=data if isinstance(data, bytes) else data.encode(), **more)

    def stream(self, path, stream, size, mode=0o644):
        return self._add(path, tarfile.REGTYPE, mode, stream=stream, size=size)

    def symlink(self, path, target):
        return self._add(path, tarfile.SYMTYPE, 0o777, link=target)

    def hardlink(self, path, target):
        return self._add(path, tarfile.LNKTYPE, 0o644, link=target.strip("/"))

    def char_device(self, path, major, minor, mode=0o666):
        return self._add(path, tarfile.CHRTYPE, mode, device=(major, minor))

    def whiteout(self, path):
        """Removes `path` of the layers below."""
        folder, _, name = path.strip("/").rpartition("/")
        return self.file(f"{folder}/.wh.{name}", b"")

    def opaque(self, path):
        """Hides everything that the layers below have in the folder `path`."""
        return self.file(f"{path.strip('/')}/.wh..wh..opq", b"")

    def done(self):
        self._tar.close()
        return self._bytes.getvalue()


def write_image(path, name, layers, command, env=(), user="", workdir="/", entrypoint=(), compress=False, labels=None):
    """Writes the archive `path` holding one linux/amd64 image called `name`; `layers` are tar archives, lowest first."""
    blobs = {}

    def blob(data):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return f"sha256:{digest}"

    kind = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if compress else "")
    described, diff_ids = [], []
    for layer in layers:
        diff_ids.append(f"sha256:{hashlib.sha256(layer).hexdigest()}")
        data = gzip.compress(layer, 1, mtime=0) if compress else layer
        described.append({"mediaType": kind, "digest": blob(data), "size": len(data)})
    config = json.dumps({
        "created": "1970-01-01T00:00:00Z", "architecture": "amd64", "os": "linux",
        "config": {"Cmd": list(command), "Entrypoint": list(entrypoint) or None, "User": user, "WorkingDir": workdir, "Labels": labels or {},
                   "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *env]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }).encode()
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob(config), "size": len(config)},
        "layers": described,
    }).encode()
    index = json.dumps({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": blob(manifest), "size": len(manifest),
            "platform": {"architecture": "amd64", "os": "linux"},
            "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]},
        }],
    }).encode()
    archive = Layer()
    archive.file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}').file("index.json", index)
    for digest, data in blobs.items():
        archive.file(f"blobs/sha256/{digest}", data)
    with open(path, "wb") as out:
        out.write(archive.done())
