//! What images can hold arrives in the container as it is.

use std::time::Duration;

use ravelin_tests::{Containerd, Host, Run, images};
use serde_json::json;

use crate::report;

#[test]
fn thirty_layers_merge_as_the_image_says() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.container().image(images::LAYERS30).idle().start();
    let said = report(&container.exec_sh(
        "cd /; echo top=$(cat top); echo layers=$(ls layers | wc -l); echo three=$(ls layers/3 2>/dev/null | wc -l); echo last=$(cat layers/29)
         echo opaque=$(ls opaque); echo gone=$(ls gone); echo replaced=$(cat replaced/inside)
         echo links=$(stat -c %h links/a) $([ $(stat -c %i links/a) = $(stat -c %i links/b) ] && echo same)
         echo null=$(stat -c '%F %t:%T' odd/null); echo text > odd/null && echo writable=yes
         echo setuid=$(stat -c %a odd/setuid); echo owned=$(stat -c '%a %u:%g' odd/owned); echo sticky=$(stat -c %a odd/sticky)
         echo link=$(readlink odd/dangling); echo long=$(cat odd/nnnnn*); echo unicode=$(cat odd/*code*name); ls odd | sed -n 's/^/name=/p' | grep code
         echo devices=$(find /layers /odd /opaque /gone /replaced /links -exec stat -c %d {} + | sort -u | wc -l)
         echo largest=$(find /layers /odd /opaque /gone /replaced /links /dev/null -exec stat -c %i {} + | sort -n | tail -n 1)",
    ));
    for (key, value) in [
        ("top", "29"),
        ("layers", "28"),
        ("three", "0"),
        ("last", "29"),
        ("opaque", "new"),
        ("gone", "again"),
        ("replaced", "a folder now"),
        ("links", "2 same"),
        ("null", "character special file 1:3"),
        ("writable", "yes"),
        ("setuid", "4755"),
        ("owned", "640 1000:50000"),
        ("sticky", "1777"),
        ("link", "/nowhere"),
        ("long", "a long name"),
        ("unicode", "unicode"),
        // One file system for programs that look, however many layers hold its files.
        ("devices", "1"),
    ] {
        assert_eq!(said[key], value, "{key}");
    }
    // Programs of 32 bits have no room for more.
    assert!(said["largest"].parse::<u64>().unwrap() < 1 << 32, "{}", said["largest"]);
    // A file capability is there: who has the capability at all can run the program, and who has not cannot.
    let user = json!({ "value": 1000 });
    let run = |drop: &[&str]| {
        let container =
            pod.container().image(images::LAYERS30).sh("/odd/setuid; /odd/capable || echo refused");
        let container = container.security("capabilities", json!({ "drop_capabilities": drop }));
        container.security("run_as_user", user.clone()).start()
    };
    let (with, without) = (run(&[]), run(&["NET_RAW"]));
    assert_eq!(with.output(), "Effective uid: 0\nEffective uid: 1000\n");
    assert_eq!(without.output(), "Effective uid: 0\nrefused\n");
}

#[test]
fn files_of_lower_layers_are_changed_moved_and_removed() {
    let host = Host::shared();
    let pod = host.common_pod();
    let container = pod.container().image(images::LAYERS30);
    let container = container.sh(
        "set -e; cd /; echo more >> top; cat top; rm layers/7; ! [ -e layers/7 ]; rm -r opaque; mkdir opaque; ls -A opaque | wc -l
         mv gone moved; cat moved/again; ! [ -e gone ]; mkdir gone; ls -A gone | wc -l; echo changed > links/a; cat links/a
         ln layers/8 layers/hard; stat -c %h layers/hard; chmod 600 odd/owned; chown 7:8 odd/owned; stat -c '%a %u:%g' odd/owned
         rm odd/null; ls odd/null 2>/dev/null || echo removed; dd if=/dev/zero of=/hole bs=1 count=1 seek=100M 2>/dev/null; stat -c %s /hole",
    );
    let expected = "29\nmore\n0\nagain\n0\nchanged\n2\n600 7:8\nremoved\n104857601\n";
    assert_eq!(container.start().output(), expected);
}

#[test]
fn extended_attributes_of_the_image_and_of_the_container_are_kept() {
    let host = Host::shared();
    let pod = host.pod().with_shared_pids().start();
    // Busybox has no program for them: python looks into the other container, whose processes it sees.
    let _target = pod.container().image(images::LAYERS30).command(&["sleep", "7654"]).start();
    let program = "import os
for pid in filter(str.isdigit, os.listdir('/proc')):
    with open(f'/proc/{pid}/cmdline') as line:
        if '7654' in line.read(): file = f'/proc/{pid}/root/odd/xattr'
print(os.getxattr(file, 'user.ravelin').decode())
os.setxattr(file, 'user.more', b'copied up')
print(sorted(os.listxattr(file)))
open('/file', 'w').close()
os.setxattr('/file', 'user.mine', b'kept')
print(os.getxattr('/file', 'user.mine').decode())";
    let container = pod
        .container()
        .image(images::DEBIAN)
        .command(&["python3", "-c", &program.replace("7654'", "76' + '54'")])
        .start();
    assert_eq!(container.output(), "hello\n['user.more', 'user.ravelin']\nkept\n");
}

#[test]
fn a_file_of_one_gibibyte_is_read_back_whole() {
    if !Host::whole() {
        println!("left out: it takes ten minutes, which only a whole run has");
        return;
    }
    let host = Host::shared();
    let patience = Duration::from_secs(900);
    // ctr's own way instead of the transfer service; 1.6 has no other.
    let local: &[&str] = if Host::containerd() == Containerd::V1_6 { &[] } else { &["--local"] };
    Run::ctr().args(["images", "import"]).args(local).arg("/images/on-demand/big.tar").within(patience).ok();
    let pod = host.pod().start();
    let container = pod.container().image(images::BIG).sh("stat -c %s /big; md5sum < /big").start();
    assert_eq!(container.ended_within(patience).code, 0, "{:?}", container.logs());
    assert_eq!(container.logs().out(), "1073741824\nbe2a646d031fcc67d5b90ba22db48700  -\n");
    pod.remove();
    Run::crictl().args(["rmi", images::BIG]).ok();
}
