//! What a store is given, made by hand.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tower_keep::{
    SessionId, Token,
    store::{Entry, Record, Version},
};

const HOUR: Duration = Duration::from_secs(3600);

/// The id number `n` of a user.
pub fn id_of(user: &str, n: u64) -> SessionId {
    Token::parse(format!("{}{n:044}", SessionId::slot_tag_of(user))).unwrap().id()
}

/// A session of Ana's.
pub fn id(n: u64) -> SessionId {
    id_of("ana", n)
}

/// Version `version` of a session of a user; what it holds is that number.
pub fn entry_of(user: &str, version: u32) -> Entry {
    let mut bytes = version.to_be_bytes().to_vec();
    bytes.extend(u64::from(version).to_be_bytes());
    let n = URL_SAFE_NO_PAD.encode(bytes);
    let stored = format!(
        r#"{{"v":2,"n":"{n}","t":[1763679600000,0,3600000,4000000000000],"user":"{user}","data":{{"n":{version}}}}}"#
    );
    Entry { record: Arc::new(Record::decode(stored.as_bytes()).unwrap()), ttl: HOUR }
}

pub fn entry(version: u32) -> Entry {
    entry_of("ana", version)
}

/// How a store knows that version.
pub fn version(version: u32) -> Version {
    entry(version).record.version()
}
