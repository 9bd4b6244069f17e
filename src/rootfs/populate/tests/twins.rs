use super::*;

/// Names of one inode stay names of one inode, whichever thread copies which name, and its bytes are copied once.
#[test]
fn hard_links_inside_a_source_stay_hard_links() {
    for method in [Method::Copy, Method::Reflink] {
        let site = Site::in_dir(tempdir_in("/dev/shm").unwrap());
        for i in 0..40 {
            site.write(&format!("t/{i}/own"), "own");
        }
        site.write("t/0/one", vec![b'x'; 100_000]);
        for i in 1..40 {
            fs::hard_link(site.src("t/0/one"), site.src(&format!("t/{i}/name"))).unwrap();
        }
        // A second name in another source, and one outside of the map.
        fs::hard_link(site.src("t/0/one"), site.src("single")).unwrap();
        fs::hard_link(site.src("t/5/own"), site.src("outside")).unwrap();
        let done = site.populate(method, &[("t", "to"), ("single", "single")]).unwrap();
        let inode = |path: &str| {
            let st = fs::metadata(site.root(path)).unwrap();
            (st.ino(), st.nlink())
        };
        let first = inode("to/0/one");
        assert_eq!(first.1, 40, "{method}");
        for i in 1..40 {
            assert_eq!(inode(&format!("to/{i}/name")), first, "{method}");
            assert_eq!(inode(&format!("to/{i}/own")).1, 1, "{method}");
        }
        assert_eq!(inode("single").1, 1);
        assert_eq!(fs::read(site.root("to/39/name")).unwrap(), vec![b'x'; 100_000]);
        assert_eq!(done.copied + done.cloned, 81);
        assert_eq!(done.bytes_copied + done.bytes_shared, 200_000 + 40 * 3);
    }
}
