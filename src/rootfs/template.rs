//! A root that is populated once and used by many sandboxes.
//!
//! Populating a root for every sandbox costs a walk of the host's directories each time. A template costs one walk.
//! Each sandbox then uses it as the lower layer of an overlay, by read-only bind mounts, or as the source of its links
//! or copies: [`Template::root`] is the [`Root`] for such a spec. A template also keeps one state of the host. If the
//! host's packages are upgraded while sandboxes use a template, they do not see a mixture of two states.
//!
//! A template is a directory `template-KEY-GENERATION` in a directory of the operator. The key is a hash of the
//! request: map, method, `setuid` and `skip`. The generation is a hash of the sources, so templates of two states
//! of the host can exist at the same time. For each key there are also an empty file `lock-KEY` and a symbolic link
//! `newest-KEY`, which stay.
//!
//! - **One walk.** If several threads and processes [open](Template::open) the same template at once, one of them fills
//!   it and the others wait. An existing template is used without reading the host. [`changed`](Template::changed)
//!   returns whether the host has changed; it costs a walk that makes nothing.
//! - **Complete or absent.** A template is filled under another name. It gets its final name by a rename, after
//!   everything is written to the disk (`syncfs(2)`). So a template survives a power cut too, if the file system keeps
//!   the order of `syncfs` and a later rename. A process that is killed leaves no lock, and at most a `partial-KEY` or
//!   `removed-KEY-INODE`. The next process that fills a template of that key removes these.
//! - **Locked.** Every [`Template`] holds a shared lock (`flock(2)`) on its generation, by a close-on-exec descriptor
//!   of its own, and [`remove`](Template::remove) needs an exclusive lock. A sandbox holds no lock: keep the value as
//!   long as the sandboxes that use it run. A process that is forked and does not exec shares the lock.
//!
//! No user but the operator may write in the directory, because a directory there that has the name of a template is
//! used as one. It is made with mode 0700, and refused if another user owns it or may access it. So no other user can
//! access the setuid files of a linked template either. The root of a template itself has mode 0755, because it becomes
//! `/`. The umask has no effect.
//!
//! Disk space: a template by copies needs as much as its sources, one by hard links only the directories, one by
//! reflinks little more. Each generation needs this again until it is removed. Old generations are not removed
//! automatically.
//!
//! A template by [`Link`](Method::Link) consists of the host's own files. It is safe below an overlay and with
//! read-only bind mounts, because these do not write to it. A sandbox that is linked from it is as safe as one that is
//! linked from the host. Such a template does not keep the state of the host: a file that is written in place changes
//! in the template too.
//!
//! A template does not watch the host, choose when to refresh, or count its disk space.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;

use super::hash::Fnv;
use super::populate::Watch;
use super::populate::{fingerprint, populate, validate};
use super::{ChrootEnv, Method, Options, Populated, Root};
use crate::sys::lock::{Lock, Locked};
use crate::{Error, Result};

mod store;
mod tops;

use store::Store;

/// A populated directory on disk that any number of sandboxes may use. The [module](self) documents its layout and
/// guarantees.
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
    /// Its root, with a shared lock.
    held: Locked,
    /// The names at its top that a sandbox can mount one by one, sorted.
    tops: Vec<OsString>,
    built: Option<Populated>,
}

/// The request for a template: the map and the options that are used to fill it.
#[derive(Clone, Debug)]
struct Recipe {
    map: ChrootEnv,
    method: Method,
    setuid: bool,
    /// Includes the directory that contains templates, because it changes whenever a template is made.
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

    fn options<'a>(&'a self, watch: Watch<'a>) -> Options<'a> {
        Options {
            method: self.method,
            setuid: self.setuid,
            skip: &self.skip,
            max_entries: self.max_entries,
            max_bytes: self.max_bytes,
            progress: watch.progress,
            cancel: watch.cancel,
            fingerprint: true,
        }
    }
}

/// Hash of the request, without its limits.
fn key(map: &ChrootEnv, options: &Options<'_>) -> u64 {
    // Increase the number when templates of an earlier release cannot be used any more.
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
    /// Returns the newest template in `dir` for this map, method, `setuid` and `skip`. Fills one if there is none. The
    /// limits and the progress callback of `options` apply to filling only. A fingerprint is taken in any case. Makes
    /// `dir`, with mode 0700, if its parent exists.
    ///
    /// Waits while another thread or process fills the same template. `dir` itself is left empty if it is below a
    /// source.
    ///
    /// # Errors
    /// [`Error::Spec`] for an invalid map (as [`populate`]), a map without any source that exists, a method that does
    /// not [walk](Method::walks), and a directory that is not absolute or that other users may access.
    /// [`Error::Prepare`] or [`Error::Task`] with the refused call. Everything filled so far is removed.
    pub fn open(dir: &Path, map: &ChrootEnv, options: &Options<'_>) -> Result<Template> {
        validate(map)?;
        if !options.method.walks() {
            let why =
                format!("a template can be populated by link, reflink or copy, not by {}", options.method);
            return Err(Error::spec("populate", why));
        }
        let store = Store::open(dir)?;
        let recipe = Recipe::new(map, options, &store)?;
        let _lock = store.lock(recipe.key)?;
        match store.newest(recipe.key)? {
            Some((generation, held)) => Template::of(store, recipe, generation, held, None),
            None => {
                Template::fill(store, recipe, Watch { progress: options.progress, cancel: options.cancel })
            }
        }
    }

    /// Fills a template. The caller holds the lock on the key.
    fn fill(store: Store, recipe: Recipe, watch: Watch<'_>) -> Result<Template> {
        store.remove_stale(recipe.key)?;
        let root = store.make_partial(recipe.key)?;
        let filled = populate(root.as_fd(), &recipe.map, &recipe.options(watch)).and_then(|done| {
            let generation = done.fingerprint.unwrap_or_default();
            let partial = store.partial(recipe.key);
            tops::relink(root.as_fd(), &partial)?;
            if tops::list(root.as_fd(), &partial)?.is_empty() {
                // A root with an empty map would be populated with the host's default map.
                let why = "no source of the template exists on the host";
                return Err(Error::spec("chroot_env", why));
            }
            Ok((store.publish(recipe.key, generation, root)?, generation, done))
        });
        match filled {
            Ok((held, generation, done)) => Template::of(store, recipe, generation, held, Some(done)),
            Err(error) => {
                // Return the first error. If this fails, the next process that fills a template of this key removes the
                // rest.
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

    /// Path of the template's root. Nothing may be written in it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The fingerprint of the sources when the template was filled: see [`Populated::fingerprint`].
    pub fn fingerprint(&self) -> u64 {
        self.generation
    }

    /// The result of the population, if the [`open`](Template::open) or [`refresh`](Template::refresh) that returned
    /// this value filled the template. Otherwise `None`.
    pub fn built(&self) -> Option<&Populated> {
        self.built.as_ref()
    }

    /// Whether the sources have changed since the template was filled. Walks the sources and makes nothing.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the call that was refused and its source.
    pub fn changed(&self) -> Result<bool> {
        Ok(fingerprint(&self.recipe.map, &self.recipe.skip)? != self.generation)
    }

    /// Returns a template of the present state of the sources. [`open`](Template::open) returns this one from then on.
    /// `None` if the sources have not changed. This template stays as it is, and sandboxes may go on using it.
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
            None => Template::fill(store, recipe, Watch::default()).map(Some),
        }
    }

    /// Returns the root of a sandbox that uses the template by `method`. Its map has each name at the top of the
    /// template, with its destination below `/`. [`Overlay`](Method::Overlay) and [`Bind`](Method::Bind) walk nothing.
    ///
    /// A symbolic link at the top appears as the file that it points to within the template. It is missing if it points
    /// to nothing there.
    pub fn root(&self, method: Method) -> Root {
        let top = |name: &OsString| (self.path.join(name), Path::new("/").join(name));
        Root { populate: method, chroot_env: self.tops.iter().map(top).collect(), ..Root::default() }
    }

    /// Removes the template from the disk, as [`remove_tree`](super::remove_tree). Other generations stay.
    ///
    /// # Errors
    /// [`Error::Task`] with `EWOULDBLOCK` while another [`Template`], of this process or another, holds a lock on it;
    /// then it stays as it is. Otherwise [`Error::Task`] with the paths that could not be removed. These are no longer
    /// a template.
    pub fn remove(self) -> Result<()> {
        let step = format!("flock({:?}, LOCK_EX|LOCK_NB)", self.path);
        self.held.change(Lock::ExclusiveNow).map_err(Error::task(step))?;
        self.store.remove(self.recipe.key, self.generation, self.held)
    }
}

#[cfg(test)]
mod tests;
