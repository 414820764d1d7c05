//! Export and import of sessions as lines of JSON.
//!
//! ```json
//! {"id":"AAAAAAAAAAAAHHHH…","expires_at":1763681400000,"record":{"v":2,"n":"AAAAAxbk0fTjK8pw",…}}
//! ```

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Scan, SessionInfo, Sessions};
use crate::{
    limits::Limits,
    record::Record,
    store::{Codec, Created, Entry, Found, Loaded, Outcome, SessionStore, StoreError},
    time::Timestamp,
    token::{SessionId, Tag},
};

/// The maximum length of a line besides the record.
const FRAME: usize = 4096;

/// The maximum length of a byte in JSON: a control character becomes `\u0000`.
const ESCAPED: usize = 6;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportedLine<'a> {
    id: SessionId,
    /// In milliseconds since the Unix epoch.
    expires_at: u64,
    #[serde(borrow)]
    record: &'a RawValue,
}

impl Sessions {
    /// All live sessions as lines of JSON, in any order, for [`import`](Self::import) into another store. It only reads.
    ///
    /// A line has the id, deadlines, user, metadata, values, and the generation of the current token. It is personal data, but
    /// contains no token and grants no access.
    ///
    /// A session that is alive during the whole export is returned at least once, and perhaps twice. A pending login is not
    /// exported.
    ///
    /// For example, from memory to Redis in a deployment:
    /// ```
    /// use std::io::Write;
    /// use tower_keep::{MemoryStore, SessionLayer};
    ///
    /// # async fn main_of_old(file: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = SessionLayer::new(MemoryStore::new());
    /// // … serve. After the last request:
    /// let mut file = std::fs::File::create_new(file)?; // in a place that nobody else can read
    /// let mut export = layer.sessions().export();
    /// while let Some(line) = export.next().await {
    ///     writeln!(file, "{}", line?)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn export(&self) -> Export {
        Export { scan: self.scan() }
    }

    /// Imports a session that was [exported](Self::export) from another store. It keeps its id, user, deadlines, values and token.
    ///
    /// An import can be repeated: a session with the same or a newer version stays as it is, and an older version is replaced. A
    /// session that this store knows as ended stays ended. [Limits](crate::SessionLayer::limits) do not apply, and there is no
    /// event.
    ///
    /// If a session ends in the old store after the export, it does not end here. A revocation of all sessions of a user here does
    /// not include sessions that are imported later. So export after the last request, and import before the first one, or use a
    /// [`MigratingStore`](crate::store::MigratingStore) while serving.
    ///
    /// # Errors
    /// [`ImportError::Invalid`] if this is not a line of an export, [`ImportError::TooLarge`] if the record exceeds the
    /// [maximum](crate::SessionLayer::max_size), [`ImportError::Full`] if the store is full, [`ImportError::Store`] if it is
    /// unavailable: the line can be imported again.
    ///
    /// ```
    /// use std::io::{BufRead, BufReader};
    /// use tower_keep::{Imported, Sessions};
    ///
    /// async fn import(sessions: &Sessions, file: std::fs::File) -> Result<(), Box<dyn std::error::Error>> {
    ///     for line in BufReader::new(file).lines() {
    ///         match sessions.import(&line?).await? {
    ///             Imported::Created | Imported::Updated | Imported::There => {}
    ///             over => println!("no longer live: {over:?}"),
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// # let _ = import;
    /// ```
    pub async fn import(&self, line: &str) -> Result<Imported, ImportError> {
        let context = &self.context;
        let limit = context.max_size.saturating_mul(ESCAPED).saturating_add(FRAME);
        if line.len() > limit {
            return Err(ImportError::TooLarge { size: line.len(), limit });
        }
        let Some((id, expires_at, record)) = read(line) else { return Err(ImportError::Invalid) };
        let (size, limit) = (record.weight(), context.max_size);
        if size > limit {
            return Err(ImportError::TooLarge { size, limit });
        }
        let now = context.clock.now();
        let ttl = record.full_ttl(now).min(expires_at.since(now));
        if ttl.is_zero() {
            return Ok(Imported::Expired);
        }
        let new = Entry { record: Arc::new(record), ttl };
        match context.store().create(&id, new.clone(), Limits::none()).await? {
            Created::Done { .. } => Ok(Imported::Created),
            Created::Full => Err(ImportError::Full),
            Created::Taken => match context.store().load(&id).await? {
                Found::Live(there) => self.catch_up(&id, there, new).await,
                Found::Ended(_) | Found::Unknown => Ok(Imported::Ended),
            },
        }
    }

    /// The session was imported before, or has been used since.
    async fn catch_up(&self, id: &SessionId, there: Loaded, new: Entry) -> Result<Imported, ImportError> {
        let expected = there.record.version();
        if !new.record.version().is_after(expected) {
            return Ok(Imported::There);
        }
        Ok(match self.context.store().update(id, expected, new).await? {
            Outcome::Done => Imported::Updated,
            Outcome::Conflict(_) => Imported::There,
            Outcome::Gone => Imported::Ended,
        })
    }
}

/// Parses a line. The user and the values are not validated.
fn read(line: &str) -> Option<(SessionId, Timestamp, Record)> {
    let ExportedLine { id, expires_at, record } = serde_json::from_str(line).ok()?;
    let record = Record::decode(record.get().as_bytes()).ok()?;
    // A session with a wrong slot tag could not be found by its user.
    let has_its_place = record.user().is_none_or(|user| id.tag() == Tag::of_user(user));
    // Exported sessions are not pending, and are not copies.
    let is_whole = record.replaces.is_none() && !record.version().is_copy();
    (has_its_place && is_whole).then_some((id, Timestamp::from_millis(expires_at), record))
}

/// The line of an active session.
fn line_of(session: &SessionInfo) -> Result<String, serde_json::Error> {
    let (mut record, mut expires_at) = (Record::clone(session.record()), session.ends());
    if record.replaces.take().is_some() {
        expires_at = record.written_at.plus(record.full_ttl(record.written_at));
    }
    record.version = record.version.of_original();
    let text = String::from_utf8_lossy(&record.encode_as(Codec::Json)).into_owned(); // JSON is UTF-8
    let record = RawValue::from_string(text)?;
    serde_json::to_string(&ExportedLine { id: session.id(), expires_at: expires_at.as_millis(), record: &record })
}

/// A stream of the lines of all live sessions: see [`Sessions::export`].
///
/// An error does not end the stream: the next call tries again.
///
/// ```
/// use tower_keep::{ImportError, Sessions};
///
/// async fn copy(from: &Sessions, to: &Sessions) -> Result<(), ImportError> {
///     let mut export = from.export();
///     while let Some(line) = export.next().await {
///         to.import(&line?).await?;
///     }
///     Ok(())
/// }
/// # let _ = copy;
/// ```
pub struct Export {
    scan: Scan,
}

impl Export {
    /// The next line, without a line break.
    ///
    /// # Errors
    /// [`StoreError`] if the store is unavailable. The next call tries again.
    ///
    /// ```
    /// # use tower_keep::{Sessions, store::StoreError};
    /// async fn size(sessions: &Sessions) -> Result<usize, StoreError> {
    ///     let (mut export, mut size) = (sessions.export(), 0);
    ///     while let Some(line) = export.next().await {
    ///         size += line?.len() + 1;
    ///     }
    ///     Ok(size)
    /// }
    /// # let _ = size;
    /// ```
    pub async fn next(&mut self) -> Option<Result<String, StoreError>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for Export {
    type Item = Result<String, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let session = ready!(Pin::new(&mut self.scan).poll_next(cx));
        let line = |session: SessionInfo| line_of(&session).map_err(|error| StoreError::Corrupt(error.into()));
        Poll::Ready(session.map(|session| session.and_then(line)))
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("scan", &self.scan).finish()
    }
}

/// The result of an import: see [`Sessions::import`].
///
/// ```
/// use tower_keep::{Imported, MemoryStore, SessionLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let [old, new] = [(); 2].map(|()| SessionLayer::new(MemoryStore::new()).sessions());
/// let token = old.create("ana").await?;
/// let line = old.export().next().await.ok_or("no session")??;
///
/// assert_eq!(new.import(&line).await?, Imported::Created);
/// assert!(new.is_valid(&token).await?);
/// new.revoke(&token.id()).await?;
/// assert_eq!(new.import(&line).await?, Imported::Ended);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Imported {
    /// The session was created here.
    Created,
    /// An older version was replaced.
    Updated,
    /// The same or a newer version is here, and stays.
    There,
    /// The session has ended here, and stays ended.
    Ended,
    /// The session has expired. Nothing was written.
    Expired,
}

/// Why a line was not imported.
///
/// The error contains no part of the line, which is personal data.
///
/// ```
/// use tower_keep::{ImportError, MemoryStore, SessionLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let sessions = SessionLayer::new(MemoryStore::new()).sessions();
/// let error = sessions.import(r#"{"id":"secret"}"#).await.unwrap_err();
/// assert!(matches!(error, ImportError::Invalid));
/// assert_eq!(error.to_string(), "not a line of an export that this version can read");
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// It is not a line of an export, or is of a newer version of this crate.
    #[error("not a line of an export that this version can read")]
    Invalid,
    /// The session exceeds the maximum size of the layer.
    #[error("a session of {size} bytes, where {limit} are allowed")]
    TooLarge {
        /// The size of the record, or of the line if that is too long already.
        size: usize,
        /// The maximum.
        limit: usize,
    },
    /// The store is full.
    #[error("the session store is full")]
    Full,
    /// The store is unavailable.
    #[error("the session store failed")]
    Store(#[from] StoreError),
}
