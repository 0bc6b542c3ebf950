//! Files and directories, as the log, the state file and the identity use them.
//!
//! All calls block, and are made from owner threads or while a node opens. Durability is explicit: bytes are
//! durable after [`File::sync_data`] returned `Ok`, names after [`Disk::sync_dir`] of their directory did.

use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A tree of files. Real in production, simulated in tests.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Opens a file for reading and writing; with `create`, makes it (empty) when it does not exist.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn File>>;
    /// Makes a directory and its parents; existing ones are no error.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Whether a file or directory of that name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// The paths of the entries of a directory, sorted by name.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Renames a file, replacing `to`. Durable after the directory was synced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable after the directory was synced.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// How many bytes are free for this process where a directory is; `None` where that is not known.
    fn free_bytes(&self, _dir: &Path) -> io::Result<Option<u64>> {
        Ok(None)
    }
    /// How many bytes the files of a directory take of the disk, its subdirectories apart; `None` where that is not known. A file
    /// that goes meanwhile counts or not.
    fn taken_bytes(&self, _dir: &Path) -> io::Result<Option<u64>> {
        Ok(None)
    }
    /// Takes the exclusive lock of a data directory; it is released when the guard is dropped or the process
    /// dies. `WouldBlock` when another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>>;
}

/// Holds a data directory's lock until dropped.
pub trait LockGuard: fmt::Debug + Send + Sync {}

/// An open file, addressed by offset.
pub trait File: fmt::Debug + Send + Sync + 'static {
    /// Fills `buf` from `offset`; `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// The same, from the disk and not from what the system has of it in memory, where the system can be told: for who wants
    /// to know what is there.
    fn read_from_disk_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }
    /// Writes all of `buf` at `offset`, growing the file where needed.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Writes all of these, one behind the other, from `offset` on, growing the file where needed: as writing each would,
    /// in fewer calls of the system where it can.
    fn write_all_vectored_at(&self, bufs: &[&[u8]], mut offset: u64) -> io::Result<()> {
        for buf in bufs {
            self.write_all_at(buf, offset)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or grows the file; new bytes read as zero.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes bytes and length durable (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
    /// Tells the system that it need not keep in memory what is durable of the file. What is read later comes from the
    /// disk, so this is for bytes that are not about to be read.
    fn drop_cached(&self) {}
}

/// How many pieces a system takes in one call, at least (IOV_MAX).
const SLICES_MAX: usize = 1024;

/// The operating system's files. What is made is for this program's user alone: directories 0700, files 0600.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

#[derive(Debug)]
struct RealFile(std::fs::File);

#[derive(Debug)]
struct RealLock(#[allow(dead_code, reason = "held for its lock")] std::fs::File);

impl LockGuard for RealLock {}

impl Disk for RealDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(open_private(path, create)?)))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = std::fs::read_dir(dir)?
            .map(|entry| entry.map(|e| e.path()))
            .collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<Option<u64>> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    fn taken_bytes(&self, dir: &Path) -> io::Result<Option<u64>> {
        use std::os::unix::fs::MetadataExt as _;
        /// What a block of `stat` is, whatever the file system's are.
        const BLOCK: u64 = 512;
        let mut bytes = 0u64;
        for entry in std::fs::read_dir(dir)? {
            match entry?.metadata() {
                Ok(of) if of.is_file() => bytes = bytes.saturating_add(of.blocks().saturating_mul(BLOCK)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(bytes))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let lock = lock(open_private(path, true)?)?;
        if let Some(dir) = path.parent() {
            warn_if_others_may_read(dir);
        }
        Ok(lock)
    }
}

/// The operating system's files, to be read: whatever would change something is refused.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ReadOnlyDisk;

#[derive(Debug)]
struct ReadOnlyFile(RealFile);

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the files are only to be read")
}

impl Disk for ReadOnlyDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn File>> {
        match create {
            true => Err(read_only()),
            false => Ok(Arc::new(ReadOnlyFile(RealFile(std::fs::File::open(path)?)))),
        }
    }

    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        Err(read_only())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        RealDisk.exists(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        RealDisk.list(dir)
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(read_only())
    }

    fn remove_file(&self, _path: &Path) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Err(read_only())
    }

    /// Of a file that is there: `NotFound` where no node ever locked the directory.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        lock(std::fs::File::open(path)?)
    }
}

impl File for ReadOnlyFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn read_from_disk_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_from_disk_at(buf, offset)
    }

    fn write_all_at(&self, _buf: &[u8], _offset: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(read_only())
    }
}

fn lock(file: std::fs::File) -> io::Result<Box<dyn LockGuard>> {
    file.try_lock().map_err(|e| match e {
        std::fs::TryLockError::Error(e) => e,
        std::fs::TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
    })?;
    Ok(Box::new(RealLock(file)))
}

fn open_private(path: &Path, create: bool) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// An existing directory stays as its owner made it, and may be meant so; it is said once for each opening.
fn warn_if_others_may_read(dir: &Path) {
    if others_may_read(dir) {
        tracing::warn!(dir = %dir.display(), "the data directory is open to others than its owner: chmod 700 closes it");
    }
}

fn others_may_read(dir: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    dir.metadata()
        .is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

impl File for RealFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buf, offset)
    }

    fn read_from_disk_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // A system that answers from its memory all the same has nothing wrong to tell of what it has there.
        #[cfg(target_os = "linux")]
        if let Some(length) = std::num::NonZeroU64::new(buf.len() as u64) {
            let _ = rustix::fs::fadvise(&self.0, offset, Some(length), rustix::fs::Advice::DontNeed);
        }
        self.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.0, buf, offset)
    }

    fn write_all_vectored_at(&self, bufs: &[&[u8]], mut offset: u64) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
        let mut left = &mut slices[..];
        // Empty ones in front would pass for a disk that takes nothing.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            let count = left.len().min(SLICES_MAX);
            match rustix::io::pwritev(&self.0, &left[..count], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    IoSlice::advance_slices(&mut left, written);
                    offset += written as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn drop_cached(&self) {
        // A system that keeps it all the same is slower, not wrong.
        #[cfg(target_os = "linux")]
        let _ = rustix::fs::fadvise(&self.0, 0, None, rustix::fs::Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_is_for_this_user_alone() {
        let home = tempfile::tempdir().unwrap();
        let (dir, inner) = (home.path().join("data"), home.path().join("data/log"));
        RealDisk.create_dir_all(&inner).unwrap();
        let (file, lock) = (inner.join("file"), dir.join("LOCK"));
        RealDisk.open(&file, true).unwrap();
        let _held = RealDisk.lock(&lock).unwrap();
        assert_eq!([&dir, &inner].map(|dir| mode(dir)), [0o700; 2]);
        assert_eq!([&file, &lock].map(|file| mode(file)), [0o600; 2]);
        assert!(!others_may_read(&dir));
    }

    #[test]
    fn an_existing_directory_keeps_its_permissions_and_is_known_to_be_open() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("data");
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o750)).unwrap();
        RealDisk.create_dir_all(&dir).unwrap();
        let _held = RealDisk.lock(&dir.join("LOCK")).unwrap();
        assert_eq!(mode(&dir), 0o750);
        assert!(others_may_read(&dir));
    }
}
