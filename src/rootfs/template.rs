//! A root that is populated once and used by many sandboxes.
//!
//! Walking the host's directories for every sandbox costs a walk for every sandbox. A template is walked once, and
//! each sandbox then gets it as the lower layer of an overlay, as read-only binds, or as what it is linked or copied
//! from: [`Template::root`] is the [`Root`] of such a spec. It also keeps what was, when the host's packages are
//! upgraded: a sandbox sees one state of the host, not two.
//!
//! A template lies in a directory of the operator's, as `template-KEY-GENERATION`. The key says what was asked
//! for, the map, the method and what is kept of it; the generation says what the sources were like, so that
//! two states of the host lie beside each other. Beside them lie, for each key, an empty `lock-KEY` and a symbolic
//! link `newest-KEY`; those stay.
//!
//! - **One walk.** However many threads and processes [open](Template::open) the same template at once, one of them
//!   fills it and the others wait for it. One that is there is taken without a look at the host: whoever wants
//!   to know asks [`changed`](Template::changed), which costs a walk that places nothing.
//! - **Complete or not there.** It is filled under another name and comes to its own by a rename, after everything
//!   has been written to the disk (`syncfs(2)`). Whoever is killed, at any point, leaves nothing but a
//!   `partial-KEY` or `removed-KEY-INODE` that the next who fills a template of that key removes, and no lock. So a
//!   template survives a power cut as well, where the file system keeps renames after what was synced before.
//! - **Held.** Every [`Template`] holds a shared lock (`flock(2)`) on its generation, through its own close-on-exec
//!   descriptor, and [`remove`](Template::remove) wants to hold it alone. A sandbox holds nothing: keep the value
//!   for as long as the sandboxes that use it run. A program that forks without an exec takes the lock along.
//!
//! Nobody but the operator may write in the directory: what lies there under a template's name is taken for one. It
//! is made 0700, and refused when another user owns it or may write it; then nobody else comes in
//! either, to the setuid files of a linked template, say. The root of a template itself is 0755, as it becomes `/`.
//! The umask does not matter.
//!
//! Disk: a template by copies takes what its sources take, by links the directories alone, by reflinks
//! hardly more, and each generation so much again until it is removed. Nothing removes an old one by itself.
//!
//! A template by [`Link`](Method::Link) is the host's own files. It is safe below an overlay and as read-only
//! binds, as nothing of that writes to it; a sandbox that is linked from it again is as safe as one linked
//! from the host, no more. It does not keep what was either: a file that is written in place changes in it too.
//!
//! What it does not do: watch the host, choose when to refresh, or count its disk.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;

use super::hash::Fnv;
use super::populate::{fingerprint, populate, validate};
use super::{ChrootEnv, Method, Options, Populated, Progress, Root};
use crate::sys::lock::{Lock, Locked};
use crate::{Error, Result};

mod store;
mod tops;

use store::Store;

/// A populated directory that lies on the disk and may be used by any number of sandboxes. See the
/// [module](self) for where it lies and what it promises.
///
/// ```no_run
/// use cofferdam::rootfs::{Options, Template, default_chroot_env};
/// use cofferdam::{Method, Sandbox};
/// use std::path::Path;
///
/// let options = Options { method: Method::Copy, ..Options::default() };
/// let template = Template::open(Path::new("/var/lib/driver/templates"), &default_chroot_env(), &options)?;
/// let task = Sandbox::command("id").root(template.root(Method::Overlay)).spawn()?;
/// task.wait()?;
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Debug)]
pub struct Template {
    store: Store,
    recipe: Recipe,
    path: PathBuf,
    generation: u64,
    /// The root of it, with a shared lock.
    held: Locked,
    /// The names at its top that can be mounted one by one.
    tops: Vec<OsString>,
    built: Option<Populated>,
}

/// What was asked for.
#[derive(Clone, Debug)]
struct Recipe {
    map: ChrootEnv,
    method: Method,
    setuid: bool,
    /// With the directory that templates lie in, which changes whenever one is made.
    skip: Vec<(u64, u64)>,
    max_entries: Option<u64>,
    max_bytes: Option<u64>,
    key: u64,
}

impl Recipe {
    fn new(map: &ChrootEnv, options: &Options<'_>, store: &Store) -> Result<Recipe> {
        let &Options { method, setuid, max_entries, max_bytes, .. } = options;
        let st = fstat(store.fd()).map_err(Error::prepare(format!("fstat({:?})", store.path())))?;
        let skip = options.skip.iter().copied().chain([(st.st_dev, st.st_ino)]).collect();
        let key = key(map, options);
        Ok(Recipe { map: map.clone(), method, setuid, skip, max_entries, max_bytes, key })
    }

    fn options<'a>(&'a self, progress: Option<&'a (dyn Fn(Progress) + Sync)>) -> Options<'a> {
        Options {
            method: self.method,
            setuid: self.setuid,
            skip: &self.skip,
            max_entries: self.max_entries,
            max_bytes: self.max_bytes,
            progress,
            fingerprint: true,
        }
    }
}

/// What is the same for the same request on the same host, whatever the limits.
fn key(map: &ChrootEnv, options: &Options<'_>) -> u64 {
    // The number changes when a template of before would not do any more.
    let mut bytes = b"cofferdam template 1\0".to_vec();
    bytes.extend(format!("{} {}\0", options.method, options.setuid).into_bytes());
    for path in map.iter().flat_map(|(source, dest)| [source, dest]) {
        bytes.extend(path.as_os_str().as_bytes());
        bytes.push(0);
    }
    let mut skip = options.skip.to_vec();
    skip.sort_unstable();
    skip.dedup();
    bytes.extend(skip.into_iter().flat_map(|(dev, ino)| [dev, ino]).flat_map(u64::to_le_bytes));
    Fnv::new().bytes(&bytes).value()
}

impl Template {
    /// The newest template in `dir` for this map, method, `setuid` and `skip`; filled now if there is none. The
    /// limits and the progress of `options` are about filling alone, and its `fingerprint` is always taken.
    /// `dir` is made, 0700, if its parent is there.
    ///
    /// It waits for whoever fills the same one. `dir` itself is left out where it lies below a source.
    ///
    /// # Errors
    /// [`Error::Spec`] for a map that is none (as [`populate`]), a method that does not
    /// [walk](Method::walks), and a directory that is not absolute or that others may write. Else
    /// [`Error::Prepare`] and [`Error::Task`] with the call that was refused; what was filled so far is removed.
    pub fn open(dir: &Path, map: &ChrootEnv, options: &Options<'_>) -> Result<Template> {
        validate(map)?;
        if !options.method.walks() {
            let why = format!("a template is filled by link, reflink or copy, not by {}", options.method);
            return Err(Error::spec("populate", why));
        }
        let store = Store::open(dir)?;
        let recipe = Recipe::new(map, options, &store)?;
        let _lock = store.lock(recipe.key)?;
        match store.newest(recipe.key)? {
            Some((generation, held)) => Template::of(store, recipe, generation, held, None),
            None => Template::fill(store, recipe, options.progress),
        }
    }

    /// Fills one. The caller holds the lock on the key.
    fn fill(store: Store, recipe: Recipe, progress: Option<&(dyn Fn(Progress) + Sync)>) -> Result<Template> {
        store.remove_stale(recipe.key)?;
        let root = store.make_partial(recipe.key)?;
        let filled = populate(root.as_fd(), &recipe.map, &recipe.options(progress)).and_then(|done| {
            let generation = done.fingerprint.unwrap_or_default();
            let partial = store.partial(recipe.key);
            tops::relink(root.as_fd(), &partial)?;
            if tops::list(root.as_fd(), &partial)?.is_empty() {
                // A root with an empty map would be populated with the host's default list.
                let why = "the host has nothing of what the template is to hold";
                return Err(Error::spec("chroot_env", why));
            }
            Ok((store.publish(recipe.key, generation, root)?, generation, done))
        });
        match filled {
            Ok((held, generation, done)) => Template::of(store, recipe, generation, held, Some(done)),
            Err(error) => {
                // The refusal is what to tell; the next who fills removes what is left now.
                let _ = store.remove_stale(recipe.key);
                Err(error)
            }
        }
    }

    fn of(
        store: Store,
        recipe: Recipe,
        generation: u64,
        held: Locked,
        built: Option<Populated>,
    ) -> Result<Template> {
        let path = store.path().join(store::name(recipe.key, generation));
        let tops = tops::list(held.as_fd(), &path)?;
        Ok(Template { store, recipe, path, generation, held, tops, built })
    }

    /// Where its root is. Nothing may be written in it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the sources were like when it was filled: see [`Populated::fingerprint`].
    pub fn fingerprint(&self) -> u64 {
        self.generation
    }

    /// What filling it did, if it was this value's [`open`](Template::open) or [`refresh`](Template::refresh) that
    /// filled it; `None` if it was there or another one did.
    pub fn built(&self) -> Option<&Populated> {
        self.built.as_ref()
    }

    /// Whether the sources are other than they were. Asks for each entry of the host and places nothing.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the source that could not be read.
    pub fn changed(&self) -> Result<bool> {
        Ok(fingerprint(&self.recipe.map, &self.recipe.skip)? != self.generation)
    }

    /// A template of what the sources are like now, which [`open`](Template::open) gives from then on; `None`
    /// if that is this one. This one stays as it is, and for whoever uses it.
    ///
    /// # Errors
    /// As [`open`](Template::open).
    pub fn refresh(&self) -> Result<Option<Template>> {
        let store = self.store.duplicate()?;
        let recipe = self.recipe.clone();
        let _lock = store.lock(recipe.key)?;
        let now = fingerprint(&recipe.map, &recipe.skip)?;
        if now == self.generation {
            return Ok(None);
        }
        match store.lock_shared(recipe.key, now)? {
            Some(held) => {
                store.set_newest(recipe.key, now)?;
                Template::of(store, recipe, now, held, None).map(Some)
            }
            None => Template::fill(store, recipe, None).map(Some),
        }
    }

    /// The root of a sandbox that uses it by `method`: each name at its top under `/`. With
    /// [`Overlay`](Method::Overlay) and [`Bind`](Method::Bind) nothing is walked.
    ///
    /// A symbolic link at the top is there as what it points to within the template, and is not there if that is
    /// nothing.
    pub fn root(&self, method: Method) -> Root {
        let top = |name: &OsString| (self.path.join(name), Path::new("/").join(name));
        Root { populate: method, chroot_env: self.tops.iter().map(top).collect(), ..Root::default() }
    }

    /// Removes it from the disk, and nothing else: other generations stay. By descriptor, as
    /// [`remove_tree`](super::remove_tree).
    ///
    /// # Errors
    /// [`Error::Task`]: `EWOULDBLOCK` while another [`Template`], of this process or another, holds it, and then
    /// it stays as it is; else what could not be removed, which is not taken for a template any more.
    pub fn remove(self) -> Result<()> {
        let step = format!("flock({:?}, LOCK_EX|LOCK_NB)", self.path);
        self.held.change(Lock::ExclusiveNow).map_err(Error::task(step))?;
        self.store.remove(self.recipe.key, self.generation, self.held)
    }
}

#[cfg(test)]
mod tests;
