// SPDX-License-Identifier: MIT OR Apache-2.0

//! Loading and unloading of the module: it cannot be unloaded while it is in use, and leaves
//! nothing behind when it is.

use std::fs;

use escrow_tests::artefacts;
use escrow_tests::linux::{Kernel, Linux};

/// How often it is loaded before memory is first looked at, and between looks.
const TIMES: u32 = 25;

fn comes_and_goes_on(kernel: Kernel) {
    let script = format!(
        "module=/lib/modules/$(uname -r)/escrow.ko
        modinfo $module
        cat /sys/module/escrow/version
        # Each holder of its own: the device, and what the tests have open.
        unload() {{ rmmod escrow 2>/tmp/error && return 1; cat /tmp/error; }}
        exec 4</dev/gunyah
        unload && echo kept: device
        exec 4<&-
        : >/tmp/held
        shim-tests --hold 10 >/tmp/held &
        holder=$!
        while ! grep -q holding /tmp/held; do :; done
        unload && echo kept: guest
        kill -9 $holder; wait $holder
        # What memory it takes is looked at after the first rounds, which fill caches.
        used() {{
            echo 3 >/proc/sys/vm/drop_caches
            awk '/^(SUnreclaim|VmallocUsed|Percpu|KernelStack):/ {{ sum += $2 }} END {{ print sum }}' /proc/meminfo
        }}
        round() {{
            rmmod escrow || return 1
            [ -e /sys/kernel/debug/escrow ] && return 1
            [ -e /dev/gunyah ] && return 1
            insmod $module || return 1
            shim-tests shared:: >/tmp/tests || {{ cat /tmp/tests; return 1; }}
        }}
        settle() {{ while escrow info | grep -q '^VMs besides the host *[1-9]'; do :; done; }}
        settle
        for i in $(seq {TIMES}); do round || exit 1; settle; done
        first=$(used)
        for i in $(seq {TIMES}); do round || exit 1; settle; done
        second=$(used)
        for i in $(seq {TIMES}); do round || exit 1; settle; done
        third=$(used)
        echo \"memory of the kernel: $first $second $third\"
        grep -c . /proc/slabinfo
        echo came and went"
    );
    let program = fs::read(&artefacts().shim_tests).expect("the tests of the shim");
    let files = [("bin/shim-tests", program.as_slice())];
    let name = format!("module-{kernel:?}");
    let linux = Linux::with_files(&name, "max", 2, 1024, &script, &files).of(kernel);
    let lines = linux.passes();
    let has = |line: &str| lines.iter().any(|said| said == line);
    assert!(has("kept: device") && has("kept: guest") && has("came and went"));
    assert!(has(env!("CARGO_PKG_VERSION")), "the module's version");
    let memory = lines.iter().find_map(|line| line.strip_prefix("memory of the kernel: "));
    let used: Vec<i64> =
        memory.expect("a line").split(' ').map(|kib| kib.parse().expect("KiB")).collect();
    // A leak of the module occurs in each round. The rest of the kernel allocates and frees as
    // well, but hardly so much in both intervals. A page in each round would be 100 KiB.
    let lost = used.windows(2).map(|pair| pair[1] - pair[0]).min().expect("two differences");
    assert!(lost < i64::from(TIMES) * 4, "{used:?} KiB");
}

#[test]
fn comes_and_goes() {
    comes_and_goes_on(Kernel::Older);
}

#[test]
fn comes_and_goes_on_the_newer_kernel() {
    comes_and_goes_on(Kernel::Newer);
}
