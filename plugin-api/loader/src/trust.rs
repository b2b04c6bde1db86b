//! Whether a file may be opened at all: who owns it, who may change it, whether it is on the list.
//!
//! A plugin runs with everything its host may do; nothing contains it once it is mapped. All that helps is
//! said before.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use minisign_verify::{PublicKey, Signature};
use sha2::{Digest, Sha256};

use crate::refusal::{Cause, Refusal};

/// What must hold before a file is opened.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Who may own the file and the directories above it.
    pub ownership: Ownership,
    /// The only files that may be opened; `None` allows any.
    pub allowed: Option<AllowList>,
}

impl Policy {
    /// For development: any file, whoever owns it.
    pub fn anything() -> Self {
        Self { ownership: Ownership::Anybody, allowed: None }
    }

    /// Whether the file at `path` may be opened, for a host that lets another process open it.
    ///
    /// # Errors
    /// A [`Refusal`] that says what speaks against it.
    pub fn allows(&self, path: &Path) -> Result<(), Refusal> {
        let refuse = |cause| Refusal::new(path, cause);
        let canonical = path.canonicalize().map_err(|error| refuse(Cause::Unreadable(error.to_string())))?;
        let file = File::open(&canonical).map_err(|error| refuse(Cause::Unreadable(error.to_string())))?;
        self.check(&canonical, &file).map_err(refuse)
    }

    /// Refuses the file at `path`, already open as `file`, with a sentence.
    pub(crate) fn check(&self, path: &Path, file: &File) -> Result<(), Cause> {
        if self.ownership == Ownership::RootOrSelf {
            check_ownership(path)?;
        }
        match &self.allowed {
            Some(list) => list.check(path, file),
            None => Ok(()),
        }
    }
}

/// Who may own a plugin file and the directories above it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ownership {
    /// Root or this process's user, and nobody else may write. A group may where it is this process's own.
    #[default]
    RootOrSelf,
    /// Not asked. For development only.
    Anybody,
}

/// SHA-256 sums of the plugins that may be opened, by file name.
///
/// Read from lines of `SUM  NAME`, as `sha256sum` prints them; `#` starts a comment. A directory in the name is
/// ignored, and one name may have several sums (one per build).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList(BTreeMap<String, Vec<String>>);

impl AllowList {
    /// Reads a list.
    ///
    /// # Errors
    /// A sentence that names the line that is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut list: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            let (sum, name) = line
                .split_once(char::is_whitespace)
                .filter(|(sum, _)| sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .ok_or_else(|| format!("line {}: expected a SHA-256 sum and a file name", number + 1))?;
            let name = name.trim().trim_start_matches('*');
            let name = Path::new(name).file_name().map_or_else(|| name.into(), |name| name.to_string_lossy());
            list.entry(name.into_owned()).or_default().push(sum.to_ascii_lowercase());
        }
        Ok(Self(list))
    }

    /// Reads a list that was signed with minisign: `signature` is the text of the `.minisig` file, `keys` are
    /// public keys in base64, any of which may have signed.
    ///
    /// # Errors
    /// A sentence: the signature is none, none of the keys made it, or a line is not understood.
    pub fn signed(text: &str, signature: &str, keys: &[String]) -> Result<Self, String> {
        let signature = Signature::decode(signature)
            .map_err(|error| format!("the list's signature is not understood: {error}"))?;
        for key in keys {
            let key = PublicKey::from_base64(key.trim())
                .map_err(|error| format!("the public key {key:?} is not understood: {error}"))?;
            if key.verify(text.as_bytes(), &signature, false).is_ok() {
                return Self::parse(text);
            }
        }
        Err(format!("none of {} known keys has signed the list as it is", keys.len()))
    }

    fn check(&self, path: &Path, file: &File) -> Result<(), Cause> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let sums =
            self.0.get(&name).ok_or_else(|| Cause::Untrusted(format!("{name} is not on the allow-list")))?;
        let found = sha256(file).map_err(|error| Cause::Unreadable(error.to_string()))?;
        if sums.contains(&found) {
            return Ok(());
        }
        Err(Cause::Untrusted(format!("its SHA-256 sum {found} is not the one on the allow-list")))
    }
}

/// SHA-256 of a whole file, in hex.
pub(crate) fn sha256(mut file: &File) -> std::io::Result<String> {
    file.rewind()?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn check_ownership(path: &Path) -> Result<(), Cause> {
    for (place, part) in path.ancestors().enumerate() {
        let metadata = part.metadata().map_err(|error| Cause::Unreadable(error.to_string()))?;
        check_part(part, &metadata, place > 0)?;
    }
    Ok(())
}

fn check_part(part: &Path, metadata: &Metadata, ancestor: bool) -> Result<(), Cause> {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let (owner, mode) = (metadata.uid(), metadata.mode());
    if owner != 0 && owner != user {
        return Err(Cause::Untrusted(format!(
            "{} belongs to user {owner}; it must belong to root or to user {user}",
            part.display()
        )));
    }
    let sticky = ancestor && mode & 0o1000 != 0;
    let by_group = mode & 0o020 != 0 && metadata.gid() != group;
    if (mode & 0o002 != 0 || by_group) && !sticky {
        return Err(Cause::Untrusted(format!(
            "{} can be written by others (mode {:o}); run chmod go-w on it",
            part.display(),
            mode & 0o7777
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_the_line_it_does_not_understand() {
        let sum = "a".repeat(64);
        let list = AllowList::parse(&format!("# plugins\n{sum}  cpu-v3/echo.so\n\n{sum} *other.so # why\n"));
        assert_eq!(
            list.map(|list| list.0.into_keys().collect::<Vec<_>>()),
            Ok(vec!["echo.so".into(), "other.so".into()])
        );
        for bad in ["echo.so", "abc echo.so", &format!("{sum}z echo.so"), &sum] {
            assert!(
                AllowList::parse(&format!("\n{bad}")).is_err_and(|error| error.starts_with("line 2")),
                "{bad}"
            );
        }
    }

    const KEY: &str = "RWRuZXVyb25wa3eG8fVKmA58ewpW8wyQV/R1gWPGtNg9H2d/wk7QQ6P4";
    const OTHER_KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    const SIGNATURE: &str = "untrusted comment: a test
RURuZXVyb25wa5jsgP2t4uNM+Q6XAwADZ5Bdf2Pk91KIms9sQEcA1BKxkaynHOaglssxdAVryHHRozy124GdDinG6h4HOzfHiAY=
trusted comment: timestamp:1700000000\tfile:plugins.sha256
m3F6V8xWVkpD2fUGT3Xm/k+zVxY8VrOFn3eZKY1SVHonGR//tMHvAmwYxSQuiDxo4q6vkzuO/+6y52eabffBAA==";

    #[test]
    fn a_signed_list_counts_as_it_was_signed_and_no_other_way() {
        let list = format!("{}  echo.so\n", "a".repeat(64));
        let keys = [OTHER_KEY.to_owned(), KEY.to_owned()];
        assert_eq!(AllowList::signed(&list, SIGNATURE, &keys), AllowList::parse(&list));
        let longer = format!("{list}{}  more.so\n", "b".repeat(64));
        assert!(
            AllowList::signed(&longer, SIGNATURE, &keys).is_err_and(|error| error.contains("2 known keys"))
        );
        assert!(AllowList::signed(&list, SIGNATURE, &keys[..1]).is_err());
        assert!(AllowList::signed(&list, SIGNATURE, &[]).is_err());
        assert!(AllowList::signed(&list, "signed, honestly", &keys).is_err());
        assert!(AllowList::signed(&list, SIGNATURE, &["no key".into()]).is_err());
    }
}
