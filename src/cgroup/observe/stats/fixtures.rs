//! Contents of control files, for the tests of the parsers.

/// The names and contents of the files in one directory.
pub(super) type Dir = &'static [(&'static str, &'static str)];

/// Debian's 6.1, v2 only: 20 MB of memory, a fifth of a CPU, and a file that was written, dropped from the cache and
/// read.
pub(super) const V2_6_1: Dir = &[
    ("memory.current", "19922944\n"),
    ("memory.peak", "19996672\n"),
    ("memory.max", "19996672\n"),
    ("memory.swap.current", "0\n"),
    (
        "memory.events",
        "\
low 0
high 0
max 150
oom 0
oom_kill 0
oom_group_kill 0
",
    ),
    (
        "memory.stat",
        "\
anon 409600
file 18677760
kernel 643072
kernel_stack 114688
pagetables 143360
sec_pagetables 0
percpu 0
sock 0
vmalloc 0
shmem 0
file_mapped 0
file_dirty 0
file_writeback 0
swapcached 0
anon_thp 0
file_thp 0
shmem_thp 0
inactive_anon 331776
active_anon 28672
inactive_file 18669568
active_file 8192
unevictable 0
slab_reclaimable 123712
slab_unreclaimable 134848
slab 258560
workingset_refault_anon 0
workingset_refault_file 0
workingset_activate_anon 0
workingset_activate_file 0
workingset_restore_anon 0
workingset_restore_file 0
workingset_nodereclaim 0
pgscan 6738
pgsteal 6735
pgscan_kswapd 0
pgscan_direct 6738
pgsteal_kswapd 0
pgsteal_direct 6735
pgfault 3601
pgmajfault 0
pgrefill 0
pgactivate 4
pgdeactivate 2
pglazyfree 0
pglazyfreed 0
thp_fault_alloc 0
thp_collapse_alloc 0
",
    ),
    (
        "cpu.stat",
        "\
usage_usec 3928367
user_usec 1241196
system_usec 2687170
nr_periods 196
nr_throttled 196
throttled_usec 16645518
nr_bursts 0
burst_usec 0
",
    ),
    ("pids.current", "8\n"),
    ("pids.peak", "8\n"),
    ("pids.max", "20\n"),
    ("pids.events", "max 1\n"),
    ("io.stat", "254:0 rbytes=31459328 wbytes=31457280 rios=242 wios=48 dbytes=0 dios=0\n"),
];

/// The same load on Debian's 6.1 with v1. All controllers in one list, as if they were mounted together.
pub(super) const V1_6_1: Dir = &[
    ("memory.usage_in_bytes", "19841024\n"),
    ("memory.max_usage_in_bytes", "19996672\n"),
    ("memory.limit_in_bytes", "19996672\n"),
    ("memory.failcnt", "7168\n"),
    ("memory.kmem.usage_in_bytes", "614400\n"),
    ("memory.kmem.max_usage_in_bytes", "1994752\n"),
    (
        "memory.oom_control",
        "\
oom_kill_disable 0
under_oom 0
oom_kill 0
",
    ),
    (
        "memory.stat",
        "\
cache 18800640
rss 409600
rss_huge 0
shmem 0
mapped_file 0
dirty 0
writeback 0
workingset_refault_anon 0
workingset_refault_file 0
swap 0
pgpgin 16365
pgpgout 11675
pgfault 2508
pgmajfault 0
inactive_anon 315392
active_anon 28672
inactive_file 18796544
active_file 4096
unevictable 0
hierarchical_memory_limit 19996672
hierarchical_memsw_limit 9223372036854771712
total_cache 18800640
total_rss 409600
total_rss_huge 0
total_shmem 0
total_mapped_file 0
total_dirty 0
total_writeback 0
total_workingset_refault_anon 0
total_workingset_refault_file 0
total_swap 0
total_pgpgin 16365
total_pgpgout 11675
total_pgfault 2508
total_pgmajfault 0
total_inactive_anon 315392
total_active_anon 28672
total_inactive_file 18796544
total_active_file 4096
total_unevictable 0
",
    ),
    (
        "cpu.stat",
        "\
nr_periods 250
nr_throttled 248
throttled_time 21321888588
nr_bursts 0
burst_time 0
",
    ),
    ("cpuacct.usage", "5065365643\n"),
    (
        "cpuacct.stat",
        "\
user 115
system 387
",
    ),
    ("pids.current", "8\n"),
    ("pids.peak", "8\n"),
    ("pids.max", "20\n"),
    ("pids.events", "max 1\n"),
    (
        "blkio.throttle.io_service_bytes_recursive",
        "\
254:0 Read 0
254:0 Write 0
254:0 Sync 0
254:0 Async 0
254:0 Discard 0
254:0 Total 0
Total 0
",
    ),
    (
        "blkio.throttle.io_serviced_recursive",
        "\
254:0 Read 0
254:0 Write 0
254:0 Sync 0
254:0 Async 0
254:0 Discard 0
254:0 Total 0
Total 0
",
    ),
];

/// Linux 6.18 with v1.
pub(super) const V1_6_18: Dir = &[
    ("memory.usage_in_bytes", "18305024\n"),
    ("memory.max_usage_in_bytes", "19365888\n"),
    ("memory.limit_in_bytes", "19996672\n"),
    ("memory.failcnt", "14\n"),
    ("memory.kmem.usage_in_bytes", "1327104\n"),
    ("memory.kmem.max_usage_in_bytes", "1077248\n"),
    (
        "memory.oom_control",
        "\
oom_kill_disable 0
under_oom 0
oom_kill 0
",
    ),
    (
        "memory.stat",
        "\
cache 17027072
rss 217088
rss_huge 0
shmem 0
mapped_file 0
dirty 8192
writeback 0
workingset_refault_anon 0
workingset_refault_file 59
swap 0
swapcached 0
pgpgin 2020
pgpgout 1884
pgfault 3965
pgmajfault 2
inactive_anon 57344
active_anon 0
inactive_file 16785408
active_file 241664
unevictable 0
hierarchical_memory_limit 19996672
hierarchical_memsw_limit 9223372036854771712
total_cache 17027072
total_rss 217088
total_rss_huge 0
total_shmem 0
total_mapped_file 0
total_dirty 8192
total_writeback 0
total_workingset_refault_anon 0
total_workingset_refault_file 59
total_swap 0
total_swapcached 0
total_pgpgin 2020
total_pgpgout 1884
total_pgfault 3965
total_pgmajfault 2
total_inactive_anon 57344
total_active_anon 0
total_inactive_file 16785408
total_active_file 241664
total_unevictable 0
",
    ),
    (
        "cpu.stat",
        "\
nr_periods 38
nr_throttled 38
throttled_time 2909774053
nr_bursts 0
burst_time 0
",
    ),
    ("cpuacct.usage", "788171780\n"),
    (
        "cpuacct.stat",
        "\
user 62
system 16
",
    ),
    ("pids.current", "2\n"),
    ("pids.peak", "2\n"),
    ("pids.max", "8\n"),
    ("pids.events", "max 0\n"),
    (
        "blkio.throttle.io_service_bytes_recursive",
        "\
254:0 Read 31457280
254:0 Write 31465472
254:0 Sync 62922752
254:0 Async 0
254:0 Discard 0
254:0 Total 62922752
Total 62922752
",
    ),
    (
        "blkio.throttle.io_serviced_recursive",
        "\
254:0 Read 30
254:0 Write 11
254:0 Sync 41
254:0 Async 0
254:0 Discard 0
254:0 Total 41
Total 41
",
    ),
];

/// The v2 tree on the same host, which has no controllers.
pub(super) const TREE_6_18: Dir = &[
    (
        "cpu.stat",
        "\
usage_usec 878274
user_usec 651641
system_usec 226633
nice_usec 0
",
    ),
    (
        "cpu.pressure",
        "\
some avg10=20.97 avg60=4.14 avg300=0.87 total=2828190
full avg10=20.97 avg60=4.14 avg300=0.87 total=2821217
",
    ),
    (
        "memory.pressure",
        "\
some avg10=0.00 avg60=0.00 avg300=0.00 total=10128
full avg10=0.00 avg60=0.00 avg300=0.00 total=10128
",
    ),
    (
        "io.pressure",
        "\
some avg10=0.14 avg60=0.03 avg300=0.00 total=36041
full avg10=0.14 avg60=0.03 avg300=0.00 total=36041
",
    ),
];

/// The keys of Linux 5.4 with invented numbers: no peaks, no `kernel`, no `full` for the CPU.
pub(super) const V2_5_4: Dir = &[
    ("memory.current", "6533120\n"),
    ("memory.max", "max\n"),
    ("memory.swap.current", "8192\n"),
    (
        "memory.events",
        "\
low 0
high 0
max 0
oom 0
oom_kill 0
",
    ),
    (
        "memory.stat",
        "\
anon 4866048
file 270336
kernel_stack 147456
slab 1216512
sock 0
shmem 0
file_mapped 135168
file_dirty 0
file_writeback 0
anon_thp 0
inactive_anon 0
active_anon 4866048
inactive_file 135168
active_file 135168
unevictable 0
slab_reclaimable 405504
slab_unreclaimable 811008
pgfault 5709
pgmajfault 3
workingset_refault 0
workingset_activate 0
workingset_nodereclaim 0
pgrefill 0
pgscan 0
pgsteal 0
pgactivate 33
pgdeactivate 0
pglazyfree 0
pglazyfreed 0
thp_fault_alloc 0
thp_collapse_alloc 0
",
    ),
    (
        "cpu.stat",
        "\
usage_usec 2503991
user_usec 1900000
system_usec 603991
",
    ),
    ("cpu.pressure", "some avg10=0.12 avg60=1.50 avg300=0.07 total=123456\n"),
    ("pids.current", "3\n"),
    ("pids.max", "max\n"),
    ("pids.events", "max 0\n"),
];

/// The keys of Linux 6.18 with invented numbers.
pub(super) const V2_6_18: Dir = &[
    ("memory.current", "10293248\n"),
    ("memory.peak", "16777216\n"),
    ("memory.max", "16777216\n"),
    ("memory.swap.current", "262144\n"),
    ("memory.swap.peak", "270336\n"),
    (
        "memory.events",
        "\
low 0
high 0
max 31
oom 2
oom_kill 1
oom_group_kill 0
sock_throttled 0
",
    ),
    (
        "memory.stat",
        "\
anon 8392704
file 122880
kernel 1511424
kernel_stack 163840
pagetables 327680
sec_pagetables 0
percpu 2880
sock 4096
vmalloc 0
shmem 4096
zswap 0
zswapped 0
file_mapped 81920
file_dirty 0
file_writeback 0
swapcached 4096
anon_thp 0
file_thp 0
shmem_thp 0
inactive_anon 8388608
active_anon 12288
inactive_file 40960
active_file 77824
unevictable 0
slab_reclaimable 421336
slab_unreclaimable 402568
slab 823904
workingset_refault_anon 1
workingset_refault_file 0
workingset_activate_anon 1
workingset_activate_file 0
workingset_restore_anon 0
workingset_restore_file 0
workingset_nodereclaim 0
pgdemote_kswapd 0
pgdemote_direct 0
pgdemote_khugepaged 0
pgdemote_proactive 0
pgpromote_success 0
pgscan 120
pgsteal 96
pswpin 1
pswpout 64
pgscan_kswapd 0
pgscan_direct 120
pgscan_khugepaged 0
pgscan_proactive 0
pgsteal_kswapd 0
pgsteal_direct 96
pgsteal_khugepaged 0
pgsteal_proactive 0
pgfault 9119
pgmajfault 4
pgrefill 60
pgactivate 24
pgdeactivate 58
pglazyfree 0
pglazyfreed 0
swpin_zero 0
swpout_zero 3
zswpin 0
zswpout 0
zswpwb 0
thp_fault_alloc 0
thp_collapse_alloc 0
thp_swpout 0
thp_swpout_fallback 0
numa_pages_migrated 0
numa_pte_updates 0
numa_hint_faults 0
",
    ),
    (
        "cpu.stat",
        "\
usage_usec 3303991
user_usec 3000000
system_usec 303991
nice_usec 0
core_sched.force_idle_usec 0
nr_periods 33
nr_throttled 12
throttled_usec 700100
nr_bursts 0
burst_usec 0
",
    ),
    ("irq.pressure", "full avg10=0.00 avg60=0.01 avg300=0.00 total=2417\n"),
    ("pids.current", "4\n"),
    ("pids.peak", "9\n"),
    ("pids.max", "33\n"),
    ("pids.events", "max 2\n"),
    (
        "io.stat",
        "\
259:0 rbytes=1449984 wbytes=3145728 rios=18 wios=24 dbytes=4096 dios=1 cost.vrate=100.00 cost.usage=12 cost.wait=3
252:0 rbytes=8192 wbytes=0 rios=2 wios=0 dbytes=0 dios=0
",
    ),
];
