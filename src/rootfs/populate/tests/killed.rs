use super::*;

const TOLD: &str = "COFFERDAM_TEST_POPULATE_IN";

/// Fewer rounds on an emulated processor, which takes twenty times as long.
fn rounds() -> u64 {
    if std::env::var_os("COFFERDAM_EMULATED").is_some() { 12 } else { 200 }
}

/// The map of the population that is killed: a tree, a source whose destination is inside that tree, and a file.
fn map(src: &Path) -> ChrootEnv {
    let to = |from: &str, to: &str| (src.join(from), PathBuf::from(to));
    ChrootEnv::from([to("t", "to"), to("over", "to/3/over"), to("one", "up/one")])
}

fn sources(src: &Path) {
    for i in 0..32_usize {
        let dir = src.join(format!("t/{}/{i}", i % 12));
        fs::create_dir_all(&dir).unwrap();
        for f in 0..16 {
            fs::write(dir.join(format!("file-{f}")), vec![b'a' + f; 150 * usize::from(f)]).unwrap();
        }
        symlink("../somewhere", dir.join("link")).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode([0o755, 0o1777, 0o2750, 0o1755][i % 4]))
            .unwrap();
        fs::set_permissions(dir.join("file-3"), fs::Permissions::from_mode(0o4711)).unwrap();
        set_attribute(&dir.join("file-5"), c"system.posix_acl_access", &access_list(1234, 6));
        if i % 7 == 0 {
            set_attribute(&dir, c"system.posix_acl_access", &access_list(1234, 7));
            set_attribute(&dir, c"user.note", b"of a directory");
        }
        if geteuid().is_root() && i % 3 == 0 {
            for path in [&dir, &dir.join("file-4"), &dir.join("link")] {
                std::os::unix::fs::lchown(path, Some(1234), Some(4321)).unwrap();
            }
        }
        let old = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 7);
        for path in [&dir, &dir.join("file-6")] {
            File::open(path).unwrap().set_modified(old).unwrap();
        }
    }
    fs::create_dir_all(src.join("t/3/over/hidden")).unwrap();
    fs::create_dir_all(src.join("over/sub")).unwrap();
    fs::write(src.join("over/sub/file"), vec![b'o'; 1 << 20]).unwrap();
    fs::write(src.join("one"), vec![b'1'; 1 << 20]).unwrap();
}

/// Kills a population at a random time. The population runs in a child process: this test again, told so by the
/// environment. Each entry that it made must be complete or marked as unfinished by its mode. The next population must
/// finish the tree, with all times and modes.
#[test]
fn a_killed_population_leaves_no_truncated_file() {
    if let Some(told) = std::env::var_os(TOLD).map(PathBuf::from) {
        let (dir, method) = (told.parent().unwrap(), told.file_name().unwrap().to_str().unwrap());
        fill(&dir.join("root"), &map(&dir.join("src")), method.parse().unwrap()).unwrap();
        return;
    }
    let dir = tempdir_in("/dev/shm").unwrap();
    let (src, root) = (dir.path().join("src"), dir.path().join("root"));
    sources(&src);
    let mut expect = BTreeMap::new();
    for method in WALKS {
        fs::create_dir(&root).unwrap();
        let done = fill(&root, &map(&src), method).unwrap();
        expect.insert(method, (all_facts_but_of_top(&root), done.elapsed));
        remove(dir.path(), "root");
    }
    let (mut halfway, mut random) = (BTreeMap::new(), 0x2545_f491_4f6c_dd1d_u64);
    let rounds = rounds();
    // More rounds, until each method was killed halfway at least once.
    let enough = |halfway: &BTreeMap<_, u32>| WALKS.iter().all(|method| halfway.get(method) > Some(&0));
    for round in 0..10 * rounds {
        if round >= rounds && enough(&halfway) {
            break;
        }
        let method = WALKS[round as usize % 3];
        let (expect, takes) = &expect[&method];
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        fs::create_dir(&root).unwrap();
        let delay = takes.mul_f64(1.1 * (random % 1000) as f64 / 1000.0);
        run_and_kill(dir.path(), method, delay);
        let left = all_facts_but_of_top(&root);
        for (path, facts) in &left {
            judge(path, facts, &expect[path]);
        }
        *halfway.entry(method).or_insert(0) += u32::from(left.len() > 1 && left != *expect);
        let done = fill(&root, &map(&src), method).unwrap();
        let made = all_facts_but_of_top(&root);
        assert_same(&made, expect, &format!("{method}, round {round}"));
        assert!(done.skipped.is_empty(), "{:?}", done.skipped);
        remove(dir.path(), "root");
    }
    eprintln!("killed halfway: {halfway:?} of {rounds}");
    assert!(enough(&halfway), "{halfway:?}");
}

/// Facts of all entries except the top, which the caller made itself.
fn all_facts_but_of_top(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut all = all_by(root, |path| {
        let st = fs::symlink_metadata(path).unwrap();
        let unreadable = st.is_file() && unfinished(st.mode());
        if !unreadable && (st.nlink() == 1 || st.is_dir()) {
            return facts(path);
        }
        // A hard link to the host's file, or an unfinished file, which only root can read.
        let (time, content) = (st.mtime(), st.ino().to_ne_bytes().into());
        Facts { mode: st.mode(), ids: (st.uid(), st.gid()), time, content, attributes: BTreeMap::new() }
    });
    all.remove(Path::new(""));
    // Parents without a source keep the time when they were made.
    for (path, facts) in &mut all {
        if path == Path::new("up") {
            facts.time = 0;
        }
    }
    all
}

/// Panics unless an entry of a killed population is marked as unfinished by its mode or is complete.
fn judge(path: &Path, left: &Facts, whole: &Facts) {
    // A symbolic link is made with its text, so it is never incomplete.
    let link = left.mode & SFlag::S_IFMT.bits() == SFlag::S_IFLNK.bits() && left.content == whole.content;
    assert!(link || unfinished(left.mode) || left == whole, "{path:?} is {left:?}");
}

fn unfinished(mode: u32) -> bool {
    match mode & SFlag::S_IFMT.bits() {
        0o040_000 => mode & 0o5077 == 0o1000 || mode & 0o5000 == 0o5000,
        0o100_000 => mode & 0o7000 == 0o1000,
        _ => false,
    }
}

fn run_and_kill(dir: &Path, method: Method, delay: Duration) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "rootfs::populate::tests::killed::a_killed_population_leaves_no_truncated_file"])
        .env(TOLD, dir.join(method.to_string()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !dir.join("root/to").exists() && begun.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_micros(50));
    }
    std::thread::sleep(delay);
    let _ = child.kill();
    child.wait().unwrap();
}
