// SPDX-License-Identifier: MIT OR Apache-2.0

//! `escrow stat` while a guest has pages.

use std::fs;

use escrow_tests::artefacts;
use escrow_tests::linux::{Kernel, Linux};

/// Pages that the guest has, its program's included.
const PAGES: u32 = 301;

fn tells_of_a_guest_on(kernel: Kernel) {
    let script = format!(
        "escrow stat >/tmp/quiet && grep -E '^(memories|lent |VMs)' /tmp/quiet
        : >/tmp/held
        shim-tests --hold {} >/tmp/held &
        holder=$!
        while ! grep -q holding /tmp/held; do :; done
        echo table
        escrow stat
        echo json
        escrow stat --json
        echo end of json
        echo files
        cat /sys/class/misc/gunyah/shim/lent
        cat /sys/kernel/debug/escrow/totals
        echo watch
        : >/tmp/watched
        escrow stat --json --watch=0.2 >/tmp/watched &
        watcher=$!
        while [ $(wc -l </tmp/watched) -lt 4 ]; do :; done
        kill -INT $watcher
        wait $watcher
        echo \"watcher: $?\"
        grep -c '^{{\"time_ms\":.*}}$' /tmp/watched
        wc -l </tmp/watched
        echo nobody
        adduser -D -H somebody 2>/dev/null || echo 'somebody:x:1000:1000::/:/bin/sh' >>/etc/passwd
        su somebody -s /bin/sh -c 'escrow stat; escrow info' 2>&1 | grep 'needs root'
        cd /sys/class/misc/gunyah/
        find escrow/ shim/ -type f -perm -o=r
        cd /
        echo unread
        for what in info 'info --json' log 'log --json' stat 'stat --json' 'stat --watch=60'; do
            (sleep 0.3; escrow $what; echo \"closed $what: $?\" >&2) | :
        done
        echo unmounted
        umount /sys/kernel/debug
        escrow stat | grep -E '^(no list|lent )'
        mount -t debugfs debugfs /sys/kernel/debug
        kill -9 $holder; wait $holder
        while [ $(cat /sys/class/misc/gunyah/shim/vms) != 0 ]; do :; done
        echo afterwards
        escrow stat | grep -E '^(memories|lent |VMs)'
        rmmod escrow
        escrow stat
        echo \"without: $?\"",
        PAGES - 1
    );
    let program = fs::read(&artefacts().shim_tests).expect("the tests of the shim");
    let files =
        [("bin/shim-tests", program.as_slice()), ("etc/passwd", b"root:x:0:0::/:/bin/sh\n")];
    let name = format!("stat-{kernel:?}");
    let lines = Linux::with_files(&name, "max", 2, 1024, &script, &files).of(kernel).passes();
    let section = |name: &str| -> Vec<&str> {
        lines.iter().map(|line| line.trim()).skip_while(|line| *line != name).skip(1).collect()
    };
    let words = |section: &[&str], start: &str| -> Vec<String> {
        let line = section.iter().find(|line| line.starts_with(start));
        let line = line.unwrap_or_else(|| panic!("no line {start:?} in {section:#?}"));
        line.split_whitespace().map(str::to_owned).collect()
    };
    let pages = PAGES.to_string();

    let table = section("table");
    assert_eq!(words(&table, "lent  ")[1], pages, "EL2's");
    let shim_s = table.iter().position(|line| line.starts_with("THE SHIM")).expect("the shim's");
    assert_eq!(words(&table[shim_s..], "lent  ")[1], pages);
    assert_eq!(words(&table[shim_s..], "memories")[1], "1");
    let memory = table.iter().position(|line| line.starts_with("MEMORY")).expect("memories");
    let memory: Vec<_> = table[memory + 1].split_whitespace().collect();
    assert_eq!((memory[4], *memory.last().expect("a name")), (pages.as_str(), "shim-tests"));
    let vm = words(&table, "0x");
    assert_eq!((vm[1].as_str(), vm[2].as_str(), vm[3].as_str()), ("started", "1", pages.as_str()));

    let json: String =
        section("json").into_iter().take_while(|line| *line != "end of json").collect();
    for part in ["\"name\": \"shim-tests\"", "\"state\": \"started\"", "\"lists_missing\": null"] {
        assert!(json.contains(part), "{part} is not in {json}");
    }
    assert_eq!(json.matches(&format!("\"lent\": {pages}")).count(), 3, "{json}");

    let files = section("files");
    assert_eq!(files[0], pages);
    assert_eq!(words(&files, "lent ")[1], pages);
    assert_eq!(words(&files, "lends ")[1], pages);

    let watch = section("watch");
    assert_eq!(watch[0], "watcher: 0");
    assert_eq!(watch[1], watch[2], "a line that is no object");

    let nobody = section("nobody");
    let refused = nobody.iter().filter(|line| line.contains("needs root")).count();
    assert_eq!(refused, 2, "{nobody:#?}");
    let readable = nobody.iter().take_while(|line| **line != "unread");
    let readable = readable.filter(|line| line.starts_with("escrow/") || line.starts_with("shim/"));
    let mut names: Vec<_> = readable.filter_map(|line| line.rsplit('/').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["cpus", "errata", "hardening", "version"], "what is no count");

    let unread = section("unread");
    let unread: Vec<_> = unread.iter().take_while(|line| **line != "unmounted").collect();
    assert_eq!(unread.len(), 7, "each program is quiet: {unread:#?}");
    let ended = |line: &&&&str| line.starts_with("closed ") && line.ends_with(": 0");
    assert_eq!(unread.iter().filter(ended).count(), 7, "{unread:#?}");

    let unmounted = section("unmounted");
    let without_lists: Vec<_> =
        unmounted.iter().filter(|line| line.starts_with("no list")).collect();
    assert!(without_lists[0].contains("not mounted"), "{without_lists:?}");

    let afterwards = section("afterwards");
    assert_eq!(words(&afterwards, "memories")[1], "0");
    let lent: Vec<_> = afterwards.iter().filter(|line| line.starts_with("lent ")).take(2).collect();
    assert!(lent.iter().all(|line| line.split_whitespace().nth(1) == Some("0")), "{lent:?}");
    assert!(afterwards.iter().any(|line| line.contains("module is not loaded")));
    assert!(afterwards.contains(&"without: 1"));
}

#[test]
fn tells_of_a_guest() {
    tells_of_a_guest_on(Kernel::Older);
}

#[test]
fn tells_of_a_guest_on_the_newer_kernel() {
    tells_of_a_guest_on(Kernel::Newer);
}
