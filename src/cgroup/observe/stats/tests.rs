//! Tests of which value comes from which file on each kernel, and of malformed text.

use procfs::FromRead;

use super::fixtures::*;
use super::*;
use crate::error::{Error, Result};

const HERTZ: u64 = 100;

/// A fixture as a source for the parsers.
fn files(dir: Dir) -> impl Fn(&str) -> Result<Option<String>> {
    move |name| Ok(dir.iter().find(|(file, _)| *file == name).map(|(_, text)| (*text).to_owned()))
}

fn ms(n: u64) -> Option<Duration> {
    Some(Duration::from_millis(n))
}

fn us(n: u64) -> Option<Duration> {
    Some(Duration::from_micros(n))
}

#[test]
fn v2_memory_values_come_from_their_files() {
    let old = Memory {
        usage: Some(6_533_120),
        rss: Some(4_866_048),
        cache: Some(270_336),
        mapped: Some(135_168),
        inactive_file: Some(135_168),
        swap: Some(8192),
        faults: Some(5709),
        major_faults: Some(3),
        limit_hits: Some(0),
        oom_kills: Some(0),
        ..Memory::default()
    };
    let debian = Memory {
        usage: Some(19_922_944),
        peak: Some(19_996_672),
        limit: Some(19_996_672),
        rss: Some(409_600),
        cache: Some(18_677_760),
        mapped: Some(0),
        inactive_file: Some(18_669_568),
        swap: Some(0),
        kernel: Some(643_072),
        faults: Some(3601),
        major_faults: Some(0),
        limit_hits: Some(150),
        oom_kills: Some(0),
        ..Memory::default()
    };
    let new = Memory {
        usage: Some(10_293_248),
        peak: Some(16_777_216),
        limit: Some(16_777_216),
        rss: Some(8_392_704),
        cache: Some(122_880),
        mapped: Some(81_920),
        inactive_file: Some(40_960),
        swap: Some(262_144),
        swap_peak: Some(270_336),
        kernel: Some(1_511_424),
        kernel_peak: None,
        faults: Some(9119),
        major_faults: Some(4),
        limit_hits: Some(31),
        oom_kills: Some(1),
    };
    for (dir, expected) in [(V2_5_4, old), (V2_6_1, debian), (V2_6_18, new), (TREE_6_18, Memory::default())] {
        assert_eq!(parse::memory_v2(&files(dir)).unwrap(), expected);
        assert_eq!(parse::memory_v1(&files(dir)).unwrap(), Memory::default());
    }
}

#[test]
fn v1_memory_values_come_from_their_files() {
    let debian = Memory {
        usage: Some(19_841_024),
        peak: Some(19_996_672),
        limit: Some(19_996_672),
        rss: Some(409_600),
        cache: Some(18_800_640),
        mapped: Some(0),
        inactive_file: Some(18_796_544),
        swap: Some(0),
        swap_peak: None,
        kernel: Some(614_400),
        kernel_peak: Some(1_994_752),
        faults: Some(2508),
        major_faults: Some(0),
        limit_hits: Some(7168),
        oom_kills: Some(0),
    };
    let new = Memory {
        usage: Some(18_305_024),
        peak: Some(19_365_888),
        rss: Some(217_088),
        cache: Some(17_027_072),
        inactive_file: Some(16_785_408),
        kernel: Some(1_327_104),
        kernel_peak: Some(1_077_248),
        faults: Some(3965),
        major_faults: Some(2),
        limit_hits: Some(14),
        ..debian
    };
    for (dir, expected) in [(V1_6_1, debian), (V1_6_18, new)] {
        assert_eq!(parse::memory_v1(&files(dir)).unwrap(), expected);
        assert_eq!(parse::memory_v2(&files(dir)).unwrap(), Memory::default());
    }
}

#[test]
fn v1_memory_includes_nested_cgroups_and_shows_no_limit_as_none() {
    let dir: Dir = &[
        ("memory.usage_in_bytes", "40960\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        (
            "memory.stat",
            "cache 1\nrss 2\nmapped_file 3\nhierarchical_memory_limit 9\ntotal_cache 10\ntotal_rss 20\n",
        ),
    ];
    let memory = parse::memory_v1(&files(dir)).unwrap();
    assert_eq!((memory.rss, memory.cache, memory.mapped, memory.limit), (Some(20), Some(10), None, None));
    assert_eq!(memory.swap, None, "without swapaccount=1");
}

#[test]
fn cpu_times_and_throttling_come_from_their_files() {
    let v2 =
        |total, user, system| Cpu { total: us(total), user: us(user), system: us(system), ..Cpu::default() };
    let limited = |cpu: Cpu, periods, throttled_periods, throttled| Cpu {
        periods: Some(periods),
        throttled_periods: Some(throttled_periods),
        throttled,
        ..cpu
    };
    for (dir, expected) in [
        (V2_5_4, v2(2_503_991, 1_900_000, 603_991)),
        (V2_6_1, limited(v2(3_928_367, 1_241_196, 2_687_170), 196, 196, us(16_645_518))),
        (V2_6_18, limited(v2(3_303_991, 3_000_000, 303_991), 33, 12, us(700_100))),
        (TREE_6_18, v2(878_274, 651_641, 226_633)),
    ] {
        assert_eq!(parse::cpu_v2(&files(dir)).unwrap(), expected);
    }
    let v1 = |nanos, user, system| {
        let total = Some(Duration::from_nanos(nanos));
        Cpu { total, user: ms(user), system: ms(system), ..Cpu::default() }
    };
    let throttled = |nanos| Some(Duration::from_nanos(nanos));
    for (dir, times, periods, hits, nanos) in [
        (V1_6_1, v1(5_065_365_643, 1150, 3870), 250, 248, 21_321_888_588),
        (V1_6_18, v1(788_171_780, 620, 160), 38, 38, 2_909_774_053),
    ] {
        let cpu = parse::cpuacct_v1(&files(dir), HERTZ).unwrap();
        assert_eq!(cpu, times);
        let cpu = parse::throttling_v1(&files(dir), cpu).unwrap();
        assert_eq!(cpu, limited(times, periods, hits, throttled(nanos)));
    }
}

#[test]
fn pids_values_come_from_their_files() {
    let pids =
        |current, peak, limit, hits| Pids { current: Some(current), peak, limit, limit_hits: Some(hits) };
    for (dir, expected) in [
        (V2_5_4, pids(3, None, None, 0)),
        (V2_6_1, pids(8, Some(8), Some(20), 1)),
        (V2_6_18, pids(4, Some(9), Some(33), 2)),
        (V1_6_1, pids(8, Some(8), Some(20), 1)),
        (V1_6_18, pids(2, Some(2), Some(8), 0)),
        (TREE_6_18, Pids::default()),
    ] {
        assert_eq!(parse::pids(&files(dir)).unwrap(), expected);
    }
}

fn io(device: (u32, u32), bytes: [u64; 3], times: [u64; 3]) -> Io {
    let ((major, minor), [read_bytes, written_bytes, discarded_bytes]) = (device, bytes);
    let [reads, writes, discards] = times;
    Io { major, minor, read_bytes, written_bytes, reads, writes, discarded_bytes, discards }
}

#[test]
fn io_values_come_from_their_files() {
    let disk = |read, write, reads, writes| io((254, 0), [read, write, 0], [reads, writes, 0]);
    let v2 = |dir| parse::io_v2(&files(dir)).unwrap();
    assert_eq!(v2(V2_5_4), None);
    assert_eq!(v2(V2_6_1), Some(vec![disk(31_459_328, 31_457_280, 242, 48)]));
    let nvme = io((259, 0), [1_449_984, 3_145_728, 4096], [18, 24, 1]);
    assert_eq!(v2(V2_6_18), Some(vec![io((252, 0), [8192, 0, 0], [2, 0, 0]), nvme]));
    let v1 = |dir| parse::io_v1(&files(dir)).unwrap();
    assert_eq!(v1(V1_6_1), None, "nothing but zeros");
    assert_eq!(v1(V1_6_18), Some(vec![disk(31_457_280, 31_465_472, 30, 11)]));
    assert_eq!(v1(&[("blkio.throttle.io_service_bytes_recursive", "Total 0\n")]), None);
}

#[test]
fn malformed_io_lines_are_ignored() {
    for (text, expected) in [
        ("", vec![]),
        ("252:0 ", vec![]),
        ("8:0 \n8:16 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n", vec![(8, 16)]),
        // The line of a device without counters has no newline.
        ("7:7 7:6 7:5 rbytes=28672 wbytes=0 rios=22 wios=0 dbytes=0 dios=0\n", vec![(7, 5)]),
        ("(unknown) rbytes=1 wbytes=1 rios=1 wios=1 dbytes=0 dios=0\n8:0 rios=1\n", vec![(8, 0)]),
        ("8:0 rbytes=1 (unknown) rbytes=2\n", vec![(8, 0)]),
        ("8:0 rbytes=-1 wbytes=max rios= =1 x=1 rbytes=18446744073709551616\n", vec![]),
        ("8:0 rbytes=0 wbytes=0 rios=0 wios=0 dbytes=0 dios=0\n", vec![]),
        ("rbytes=1\n:0 rbytes=1\n8: rbytes=1\n4294967296:0 rbytes=1\n", vec![]),
    ] {
        let found = parse::io_v2(&|_| Ok(Some(text.to_owned()))).unwrap().unwrap();
        assert_eq!(found.iter().map(|io| (io.major, io.minor)).collect::<Vec<_>>(), expected, "{text:?}");
    }
    let text = "(unknown) Read 9\n8:0\n8:0 Read\n8:0 Read x\n8:16 Write 7\n8:16 Trim 7\nTotal 16\n";
    let found = parse::io_v1(&|_| Ok(Some(text.to_owned()))).unwrap().unwrap();
    assert_eq!(found, [io((8, 16), [0, 7, 0], [0, 7, 0])]);
}

#[test]
fn pressure_files_are_parsed() {
    let stall = |avg10, avg60, avg300, total| {
        Some(Stall { avg10, avg60, avg300, total: Duration::from_micros(total) })
    };
    let of = |dir: Dir, name: &str| parse::pressure(&files(dir)(name).unwrap().unwrap());
    let cpu = of(TREE_6_18, "cpu.pressure");
    assert_eq!(cpu.some, stall(20.97, 4.14, 0.87, 2_828_190));
    assert_eq!(cpu.full, stall(20.97, 4.14, 0.87, 2_821_217));
    let old = of(V2_5_4, "cpu.pressure");
    assert_eq!((old.some, old.full), (stall(0.12, 1.5, 0.07, 123_456), None));
    let irq = of(V2_6_18, "irq.pressure");
    assert_eq!((irq.some, irq.full), (None, stall(0.0, 0.01, 0.0, 2417)));
    for text in [
        "",
        "some",
        "some avg10=0.00 avg60=0.00 avg300=0.00\n",
        "some avg10=NaN avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=inf avg60=0.00 avg300=0.00 total=0\n",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=-1\n",
        "something avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    ] {
        assert_eq!(parse::pressure(text), Pressure::default(), "{text:?}");
    }
}

#[test]
fn malformed_values_are_none_and_the_largest_numbers_are_kept() {
    let all = |text: &'static str| {
        let files = move |_: &str| Ok(Some(text.to_owned()));
        let mut cpu = parse::cpuacct_v1(&files, HERTZ).unwrap();
        cpu = parse::throttling_v1(&files, cpu).unwrap();
        let pids = parse::pids(&files).unwrap();
        (parse::memory_v1(&files).unwrap(), parse::memory_v2(&files).unwrap(), cpu, pids)
    };
    for text in
        ["", "\n", "max\n", "-1\n", "1.5\n", "18446744073709551616\n", "0x10", "anon\nfile x\nusage_usec \n"]
    {
        assert_eq!(
            all(text),
            (Memory::default(), Memory::default(), Cpu::default(), Pids::default()),
            "{text:?}"
        );
    }
    let (v1, v2, cpu, pids) = all("18446744073709551615\n");
    assert_eq!(
        (v1.usage, v1.limit, v2.usage, v2.limit),
        (Some(u64::MAX), None, Some(u64::MAX), Some(u64::MAX))
    );
    assert_eq!((cpu.total, pids.current), (Some(Duration::from_nanos(u64::MAX)), Some(u64::MAX)));
    let huge = "usage_usec 18446744073709551615\nuser 18446744073709551615\nuser_usec 1\nuser_usec 2\n";
    let files = |_: &str| Ok(Some(huge.to_owned()));
    assert_eq!(parse::cpu_v2(&files).unwrap().total, us(u64::MAX));
    assert_eq!(parse::cpu_v2(&files).unwrap().user, us(1), "the first of two");
    assert_eq!(parse::cpuacct_v1(&files, HERTZ).unwrap().user, None, "more than 584 years");
    assert_eq!(parse::cpuacct_v1(&files, 0).unwrap().user, None);
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let refused = |file: &str| match file {
        "memory.stat" | "cpu.stat" | "io.stat" | "pids.peak" => {
            Err(Error::task(file)(nix::errno::Errno::EMFILE))
        }
        _ => Ok(Some("1\n".to_owned())),
    };
    let step = |error| match error {
        Error::Task { step, .. } => step,
        other => panic!("{other:?}"),
    };
    assert_eq!(step(parse::memory_v1(&refused).unwrap_err()), "memory.stat");
    assert_eq!(step(parse::memory_v2(&refused).unwrap_err()), "memory.stat");
    assert_eq!(step(parse::cpu_v2(&refused).unwrap_err()), "cpu.stat");
    assert_eq!(step(parse::throttling_v1(&refused, Cpu::default()).unwrap_err()), "cpu.stat");
    assert_eq!(step(parse::io_v2(&refused).unwrap_err()), "io.stat");
    assert_eq!(step(parse::pids(&refused).unwrap_err()), "pids.peak");
}

#[test]
fn a_process_is_parsed_from_its_stat_file() {
    // From Debian's 6.1, with a process name that imitates fields.
    let text = "135 (c) R 1 (at) R 133 133 133 0 -1 4194304 594 3250 0 0 123 42 5 268 20 0 1 0 521 2379776 1 \
                18446744073709551615 4198400 5785993 140732062367648 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 6141704 \
                6178576 840388608 140732062371702 140732062371722 140732062371722 140732062371817 0\n";
    let found = parse::process(procfs::process::Stat::from_read(text.as_bytes()).unwrap(), HERTZ, 4096);
    let expected = Process {
        pid: 135,
        parent: 133,
        name: "c) R 1 (at".into(),
        state: 'R',
        threads: 1,
        user: Duration::from_millis(1230),
        system: Duration::from_millis(420),
        rss: 4096,
        address_space: 2_379_776,
        started: Duration::from_millis(5210),
    };
    assert_eq!(found, expected);
}

#[test]
fn cpu_percent_needs_two_samples_of_one_task() {
    let at = |taken: u64, total: Option<u64>| Stats {
        taken: Duration::from_millis(taken),
        cpu: Cpu { total: total.map(Duration::from_millis), ..Cpu::default() },
        ..Stats::default()
    };
    for (earlier, later, percent) in [
        (at(0, Some(0)), at(1000, Some(500)), Some(50.0)),
        (at(500, Some(100)), at(1000, Some(2100)), Some(400.0)),
        (at(500, Some(100)), at(1000, Some(100)), Some(0.0)),
        (at(500, Some(100)), at(500, Some(200)), None),
        (at(500, Some(100)), at(400, Some(200)), None),
        // Samples of different tasks.
        (at(500, Some(100)), at(600, Some(50)), None),
        (at(500, None), at(600, Some(50)), None),
        (at(500, Some(1)), at(600, None), None),
    ] {
        assert_eq!(later.cpu_percent(&earlier), percent, "{earlier:?} {later:?}");
    }
}

#[test]
fn stats_survive_serialisation() {
    let stats = Stats {
        taken: Duration::from_millis(12_345),
        cpu: parse::cpu_v2(&files(V2_6_1)).unwrap(),
        io: Some(vec![io((8, 0), [1, 2, 3], [4, 5, 6])]),
        ..Stats::default()
    };
    let json = serde_json::to_value(&stats).unwrap();
    assert_eq!(json.pointer("/cpu/total/secs").unwrap(), 3);
    assert_eq!(json.pointer("/io/0/read_bytes").unwrap(), 1);
    assert!(json.pointer("/memory/peak").unwrap().is_null());
    assert_eq!(serde_json::from_value::<Stats>(json).unwrap(), stats);
    assert_eq!(serde_json::from_str::<Stats>("{}").unwrap(), Stats::default());
}
