//! Programs that are hard on a file system, on a directory of the node's; with runc on the same directory too.

use std::fs;
use std::sync::Once;
use std::time::Duration;

use ravelin_tests::{ContainerSpec, Containerd, Host, Pod, Run, Volume, eventually, images};

/// What Fargate mounts.
const EFS: &str = "efs.csi.aws.com";
const PATIENCE: Duration = Duration::from_secs(900);

/// A container of the image with the programs, with a file volume at /data.
fn container<'p>(pod: &'p Pod<'p>, volume: &Volume) -> ContainerSpec<'p> {
    static IMPORTED: Once = Once::new();
    IMPORTED.call_once(|| {
        let local: &[&str] = if Host::containerd() == Containerd::V1_6 { &[] } else { &["--local"] };
        let import = Run::ctr().args(["images", "import"]).args(local).arg("/images/on-demand/programs.tar");
        import.within(PATIENCE).ok();
    });
    pod.container().image(images::PROGRAMS).mount(&volume.path, "/data", false)
}

/// Each program says one line at its end.
const PROGRAMS: &str = r#"
set -eu; cd /data; export HOME=/tmp LC_ALL=C

# A database whose processes share a map: two writers at a time, one log.
sqlite3 db 'pragma journal_mode=wal; create table t(writer, number);' > /dev/null
writer() { for n in $(seq 25); do sqlite3 -cmd '.timeout 60000' db "insert into t values($1, $n);"; done; }
writer 1 & writer 2 & wait
echo sqlite $(sqlite3 db 'select count(*), count(distinct writer) from t; pragma integrity_check;')

python3 - << 'PYTHON'
import mmap, os
with open("map", "wb") as file: file.truncate(1 << 20)
with open("map", "r+b") as one, open("map", "r+b") as two:
    first, second = mmap.mmap(one.fileno(), 0), mmap.mmap(two.fileno(), 0)
    for page in range(0, 1 << 20, 4096): first[page:page + 4] = b"page"
    if os.fork() == 0:
        second[4096:4100] = b"fork"
        os._exit(0)
    os.wait()
    first.flush()
    print("map", first[4096:4100].decode(), os.pread(two.fileno(), 4, 1 << 19).decode(), os.fstat(one.fileno()).st_size)
PYTHON

for engine in psync mmap; do
    fio --name=verify --directory=/data --filename=fio-$engine --ioengine=$engine --rw=randwrite --bs=4k --size=4m --verify=crc32c \
        --do_verify=1 --fsync=64 --minimal > /tmp/fio 2>&1 && echo fio $engine || { cat /tmp/fio; exit 1; }
done

mkdir repository; cd repository; git init -q .
git config user.email x@example.com; git config user.name x
for n in $(seq 60); do mkdir -p $((n % 6)); echo "line $n" > $((n % 6))/$n; done
git add .; git commit -qm one; git mv 1 moved; echo more >> 2/2; git commit -qam two
cd ..; git clone -q --no-local repository clone
echo git $(git -C clone log --oneline | wc -l) $(git -C clone fsck 2>&1 | grep -c error || true) $(git -C clone status --short | wc -l)

mkdir redis; redis() { redis-server --dir /data/redis --appendonly yes --appendfsync always --unixsocket /tmp/redis --port 0 --save '' > /tmp/redis.log & }
say() { redis-cli -s /tmp/redis "$@"; }
redis; until say ping > /dev/null 2>&1; do sleep 0.2; done
for n in $(seq 20); do say set key$n value$n > /dev/null; done
kill -9 $!; wait $! 2> /dev/null || true
redis; until [ "$(say ping 2> /dev/null)" = PONG ]; do sleep 0.2; done
echo redis $(say dbsize) $(say get key20); kill $!; wait $! || true

tar cf tree.tar -C / etc; mkdir tree; tar xpf tree.tar -C tree
echo tar $(diff -r --no-dereference /etc tree/etc | wc -l)
"#;

#[test]
fn databases_and_other_programs_work_on_a_file_volume() {
    let host = Host::shared();
    let pod = host.common_pod();
    let volume = Volume::csi(&pod, "pvc-programs", EFS);
    let container = container(&pod, &volume).command(&["bash", "-c", PROGRAMS]).start();
    let ended = container.ended_within(PATIENCE);
    let said = container.logs().out();
    let expected =
        "sqlite 50|2 ok\nmap fork page 1048576\nfio psync\nfio mmap\ngit 2 0 0\nredis 20 value20\ntar 0\n";
    assert_eq!((said.as_str(), ended.code), (expected, 0), "{:?}", container.logs());
    // The node has it all: what was written through a map too.
    let map = fs::read(volume.path.join("map")).unwrap();
    assert_eq!((map.len(), &map[4096..4100], &map[8192..8196]), (1 << 20, &b"fork"[..], &b"page"[..]));
}

#[test]
fn what_was_written_through_a_map_is_the_nodes_when_the_pod_is_killed() {
    let Some(host) = Host::shared_with_ravelin() else { return };
    let pod = host.pod().sized(1000, 512).start();
    let volume = Volume::csi(&pod, "pvc-stopped", EFS);
    fs::write(volume.path.join("file"), vec![b'.'; 64 << 10]).unwrap();
    let program = "
import mmap, time
file = open('/data/file', 'r+b')
map = mmap.mmap(file.fileno(), 0)
map[40000:40006] = b'mapped'
print('written', flush=True)
time.sleep(9999)";
    let container = container(&pod, &volume).command(&["python3", "-c", program]).start();
    container.says("written");
    let text = || fs::read(volume.path.join("file")).unwrap()[40000..40006].to_vec();
    assert_eq!(text(), b"......");
    // As CRI ends a sandbox; the containers have not been ended before.
    Run::ctr().args(["tasks", "kill", "-s", "SIGKILL", &pod.id]).ok();
    eventually("the pod is seen to have ended", || (pod.state() == "SANDBOX_NOTREADY").then_some(()));
    assert_eq!(text(), b"mapped");
    pod.remove();
}
