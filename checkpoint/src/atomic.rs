//! Files that are there whole or not at all.
//!
//! A file is written under a temporary name in the directory of its target, flushed to the disk, and renamed over the
//! target; then the directory is flushed. A process that is killed at any moment leaves the old file or the new one, and
//! perhaps a file `.NAME.tweedie-XXXXXX.tmp`, which the next write of the same target removes. The writer holds a lock
//! on its temporary file, so that one that is still being written is never taken for a leftover.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::CheckpointError;

const MARK: &str = ".tweedie-";
const SUFFIX: &str = ".tmp";

/// Replaces the content of `path` by `bytes`, atomically; see [`atomic_write_with`].
///
/// # Errors
/// As [`atomic_write_with`].
pub fn atomic_write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<(), CheckpointError> {
    atomic_write_with(path, |writer| writer.write_all(bytes))
}

/// Replaces the content of `path` by what `write` writes (buffered), atomically.
///
/// A symbolic link is followed. What is neither a file nor absent (`/dev/stdout`, a pipe) is written to directly.
///
/// # Errors
/// If the directory does not exist or cannot be written, or `write` fails: then the old file is still there, unchanged,
/// and nothing else is left behind.
pub fn atomic_write_with(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let path = path.as_ref();
    replace(path, write).map_err(|e| CheckpointError::io("write", path, e))
}

fn replace(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    stage(path, write)?.commit()
}

/// New content of a file, written and flushed to the disk, but not yet in its place. Dropped, it leaves nothing behind.
pub(crate) struct Staged {
    /// The temporary file and its target; `None` where there was nothing to wait for, as with a device.
    file: Option<(NamedTempFile, PathBuf)>,
}

impl Staged {
    /// Puts the content into its place, by one rename.
    pub(crate) fn commit(self) -> io::Result<()> {
        let Some((temporary, target)) = self.file else { return Ok(()) };
        // From here on the temporary file is gone: renamed, or removed by the error's destructor.
        temporary.persist(&target).map_err(|e| e.error)?;
        sync_directory(parent(&target))
    }
}

/// The directory that a file lies in.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// All of a replacement that takes time or can lack space; [`Staged::commit`] is the rest.
pub(crate) fn stage(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Staged> {
    let target = match path.metadata() {
        Ok(meta) if meta.is_dir() => return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory")),
        Ok(meta) if meta.is_file() => fs::canonicalize(path)?,
        Ok(_) => {
            let mut device = BufWriter::new(File::options().write(true).open(path)?);
            write(&mut device)?;
            device.flush()?;
            return Ok(Staged { file: None });
        }
        Err(_) => path.to_owned(),
    };
    let name = target
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"))?
        .to_string_lossy()
        .into_owned();
    let directory = parent(&target);
    remove_leftovers(directory, &name);
    let temporary = create(directory, &name)?;
    let mut buffered = BufWriter::with_capacity(1 << 20, temporary.as_file());
    write(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    temporary.as_file().sync_all()?;
    Ok(Staged { file: Some((temporary, target)) })
}

/// A new temporary file beside the target, locked for as long as it is open.
fn create(directory: &Path, name: &str) -> io::Result<NamedTempFile> {
    let prefix = format!(".{name}{MARK}");
    loop {
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(SUFFIX);
        #[cfg(unix)]
        {
            // As for any new file, the process's umask decides who may read it.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(directory)?;
        // Between creation and lock another writer may have taken the file for a leftover and removed it. File
        // systems without locks are written to without that protection.
        if file.as_file().lock().is_err() || file.path().exists() {
            return Ok(file);
        }
    }
}

/// Removes what killed writers of the same target left. A failure to do so is no reason not to write.
fn remove_leftovers(directory: &Path, name: &str) {
    let prefix = format!(".{name}{MARK}");
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let found = entry.file_name();
        let found = found.to_string_lossy();
        let random = found.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(SUFFIX));
        if !random.is_some_and(|r| !r.is_empty() && r.bytes().all(|b| b.is_ascii_alphanumeric())) {
            continue;
        }
        // The lock is held while the file is removed, so that a writer that waits for it sees that it is gone.
        if let Ok(file) = File::options().write(true).open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Flushes the rename itself; only Unix has (and needs) the notion.
#[cfg(unix)]
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        // Some file systems know no flush of a directory.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other,
    }
}

#[cfg(not(unix))]
pub(crate) fn sync_directory(_directory: &Path) -> io::Result<()> {
    Ok(())
}
