// SPDX-License-Identifier: MIT OR Apache-2.0

// Each row has a sample of its own, by whose symbol it is found in a trace:
// `sample_` and the row's name.

        .text
        .irp    cpus, 1, 2, 4, 8
        sample  lend_4k_cpus_\cpus, "hvc #0"
        sample  lend_64x4k_per_page_cpus_\cpus, "hvc #0"
        sample  lend_4k_near_lists_cpus_\cpus, "hvc #0"
        sample  lend_4k_same_block_cpus_\cpus, "hvc #0"
        .endr
        sample  lend_4k, "hvc #0"
        sample  lend_512x4k, "hvc #0"
        sample  lend_2m, "hvc #0"
        sample  nothing
