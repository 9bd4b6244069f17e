//! Texts of real hosts, for the tests of this module.

pub(super) const HYBRID_MOUNTS: &str = "\
23 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

pub(super) const HYBRID_SELF: &str = "\
9:name=systemd:/
8:pids:/
7:blkio:/
6:freezer:/
5:devices:/
4:memory:/process_api/fb0fcad0
3:cpuset:/
2:cpuacct:/
1:cpu:/
0::/
";

/// The layout of old systemd: cpu mounted with cpuacct, net_cls with net_prio, and no v2 tree.
pub(super) const V1_MOUNTS: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
25 22 0:22 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:8 - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/systemd rw,nosuid shared:9 - cgroup cgroup rw,xattr,name=systemd
28 25 0:25 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct
29 25 0:26 / /sys/fs/cgroup/cpuset rw,nosuid shared:12 - cgroup cgroup rw,cpuset
30 25 0:27 / /sys/fs/cgroup/memory rw,nosuid shared:13 - cgroup cgroup rw,memory
31 25 0:28 / /sys/fs/cgroup/freezer rw,nosuid shared:14 - cgroup cgroup rw,freezer
32 25 0:29 / /sys/fs/cgroup/net_cls,net_prio rw,nosuid shared:15 - cgroup cgroup rw,net_cls,net_prio
33 25 0:30 / /sys/fs/cgroup/pids rw,nosuid shared:16 - cgroup cgroup rw,pids
";

pub(super) const V1_SELF: &str = "\
7:pids:/system.slice/ssh.service
6:net_cls,net_prio:/
5:freezer:/
4:memory:/system.slice/ssh.service
3:cpuset:/
2:cpu,cpuacct:/system.slice/ssh.service
1:name=systemd:/system.slice/ssh.service
";

pub(super) const V2_MOUNTS: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
26 22 0:23 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
";

/// A container with its own cgroup namespace, mounted read-only, as docker starts it.
pub(super) const CGROUPNS_MOUNTS: &str = "\
600 500 0:60 / / rw,relatime - overlay overlay rw
610 600 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate
";

pub(super) const ALL_V2: &str = "cpuset cpu io memory hugetlb pids rdma misc\n";

/// Debian with all controllers on v2.
pub(super) const PROC_CGROUPS: &str = "\
#subsys_name\thierarchy\tnum_cgroups\tenabled
cpuset\t0\t94\t1
cpu\t0\t94\t1
cpuacct\t0\t94\t1
blkio\t0\t94\t1
memory\t0\t94\t1
devices\t0\t94\t1
freezer\t0\t94\t1
net_cls\t0\t94\t1
perf_event\t0\t94\t1
net_prio\t0\t94\t1
hugetlb\t0\t94\t1
pids\t0\t94\t1
rdma\t0\t94\t1
misc\t0\t94\t1
";

/// Linux 6.12 without `CONFIG_MEMCG_V1` and `CONFIG_CPUSETS_V1`, and without network controllers.
pub(super) const PROC_CGROUPS_6_12: &str = "\
#subsys_name\thierarchy\tnum_cgroups\tenabled
cpu\t0\t94\t1
cpuacct\t0\t94\t1
blkio\t0\t94\t1
devices\t0\t94\t1
freezer\t0\t94\t1
perf_event\t0\t94\t1
hugetlb\t0\t94\t1
pids\t0\t94\t1
";

/// Goes with [`HYBRID_SELF`].
pub(super) const HYBRID_PROC_CGROUPS: &str = "\
#subsys_name\thierarchy\tnum_cgroups\tenabled
cpuset\t3\t1\t1
cpu\t1\t1\t1
cpuacct\t2\t1\t1
blkio\t7\t1\t1
memory\t4\t47\t1
devices\t5\t1\t1
freezer\t6\t1\t1
net_cls\t0\t1\t1
perf_event\t0\t1\t1
net_prio\t0\t1\t1
hugetlb\t0\t1\t1
pids\t8\t1\t1
";

/// Goes with [`V1_SELF`]: an old kernel without hugetlb, whose blkio and devices are not mounted.
pub(super) const V1_PROC_CGROUPS: &str = "\
#subsys_name\thierarchy\tnum_cgroups\tenabled
cpuset\t3\t1\t1
cpu\t2\t60\t1
cpuacct\t2\t60\t1
blkio\t0\t1\t1
memory\t4\t100\t1
devices\t0\t1\t1
freezer\t5\t2\t1
net_cls\t6\t1\t1
perf_event\t8\t1\t1
net_prio\t6\t1\t1
pids\t7\t60\t1
";

/// `cgroup_no_v1=all` with an init that uses the old layout: the named v1 hierarchy, and all controllers on v2.
pub(super) const NO_V1_MOUNTS: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
25 22 0:22 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:8 - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/systemd rw,nosuid shared:9 - cgroup cgroup rw,xattr,name=systemd
27 25 0:24 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
";

pub(super) const NO_V1_SELF: &str =
    "1:name=systemd:/system.slice/ssh.service\n0::/system.slice/ssh.service\n";

pub(super) const SWAPS_NONE: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";

pub(super) const SWAPS_ONE: &str = "\
Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/dm-1                               partition\t999420\t0\t-2
";
