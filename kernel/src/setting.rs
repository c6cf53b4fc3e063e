//! Settings that are not ours: changed after their old value is on disk, restored from there.
//!
//! The record is a text file of lines `path value`, one for each setting changed: written beside, synced, renamed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use kernel_core::Setting;

use crate::Error;

/// More than the record ever has: two settings for each device.
const LONGEST_RECORD: u64 = 1024 * 1024;

pub(crate) struct Settings {
    record: PathBuf,
    /// Values found before ours were written.
    old: BTreeMap<Setting, u8>,
}

impl Settings {
    pub(crate) fn open(record: &Path) -> Result<Self, Error> {
        let old = match fs::metadata(record) {
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(failed(record, &error)),
            Ok(metadata) if metadata.len() > LONGEST_RECORD => {
                let reason = "too long to be a record of settings; move it away".to_owned();
                return Err(Error::File { path: record.display().to_string(), reason });
            }
            Ok(_) => parse(&fs::read_to_string(record).map_err(|error| failed(record, &error))?),
        };
        Ok(Self { record: record.to_owned(), old })
    }

    /// The settings we changed, with the value each has now.
    pub(crate) fn list(&self) -> BTreeMap<Setting, u8> {
        // A setting of a device that went is not there any more.
        self.old.keys().filter_map(|setting| Some((setting.clone(), read(setting).ok()?))).collect()
    }

    pub(crate) fn set(&mut self, setting: &Setting, value: u8) -> Result<(), Error> {
        let now = read(setting)?;
        if !self.old.contains_key(setting) {
            self.old.insert(setting.clone(), now);
            if let Err(error) = self.save() {
                self.old.remove(setting);
                return Err(error);
            }
        }
        if now == value { Ok(()) } else { write(setting, value) }
    }

    pub(crate) fn restore(&mut self, setting: &Setting) -> Result<(), Error> {
        let Some(old) = self.old.get(setting).copied() else { return Ok(()) };
        // A device that went took its setting along.
        if path(setting).exists() {
            write(setting, old)?;
        }
        self.old.remove(setting);
        self.save()
    }

    pub(crate) fn changed(&self) -> Vec<Setting> {
        self.old.keys().cloned().collect()
    }

    fn save(&self) -> Result<(), Error> {
        let fail = |error: std::io::Error| failed(&self.record, &error);
        let folder = self.record.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let beside = self.record.with_extension("new");
        let mut file = File::create(&beside).map_err(fail)?;
        for (setting, value) in &self.old {
            writeln!(file, "{} {value}", setting.path()).map_err(fail)?;
        }
        file.sync_all().map_err(fail)?;
        fs::rename(&beside, &self.record).map_err(fail)?;
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)
    }
}

/// Lines that are not of the closed list are left out: nothing outside it is ever written.
fn parse(text: &str) -> BTreeMap<Setting, u8> {
    let mut old = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let entry = line
            .rsplit_once(' ')
            .and_then(|(path, value)| Some((Setting::from_path(path).ok().flatten()?, value.trim().parse().ok()?)));
        match entry {
            Some((setting, value)) => drop(old.insert(setting, value)),
            None => tracing::warn!(line, "a line in the record of settings is not one of ours; left out"),
        }
    }
    old
}

fn path(setting: &Setting) -> PathBuf {
    Path::new("/proc/sys").join(setting.path())
}

fn read(setting: &Setting) -> Result<u8, Error> {
    let path = path(setting);
    let text = fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
    text.trim().parse().map_err(|_| Error::File {
        path: path.display().to_string(),
        reason: format!("'{}' is not a number from 0 to 255", text.trim()),
    })
}

fn write(setting: &Setting, value: u8) -> Result<(), Error> {
    let path = path(setting);
    fs::write(&path, value.to_string()).map_err(|error| failed(&path, &error))
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    let advice = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "; this needs CAP_NET_ADMIN and a /proc/sys that can be written"
        }
        ErrorKind::NotFound => "; the device is gone, or the kernel lacks this setting",
        _ => "",
    };
    Error::File { path: path.display().to_string(), reason: format!("{error}{advice}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_gives_back_only_settings_of_the_closed_list() {
        let text = "net/ipv4/ip_forward 0\nkernel/core_pattern 1\nnet/ipv4/conf/../rp_filter 1\nnonsense\n\n";
        assert_eq!(parse(text), [(Setting::ForwardIpv4, 0)].into());
    }
}
