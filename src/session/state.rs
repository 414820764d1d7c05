//! What a request knows about its session. No I/O here: `plan.rs` decides the next write, `apply.rs` the next state.

use std::sync::Arc;

use super::{
    SessionError,
    changes::{Action, Changes},
    lookup_outcome::LookupOutcome,
    write::{NewSession, PendingWrite},
};
use crate::{
    credential::PresentedCredentials,
    ended::EndReason,
    lifetime::Lifetime,
    record::{Data, Json, Record, Version},
    store::Entry,
    time::Timestamp,
    token::{SessionId, Token},
};

pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) changes: Changes,
    /// A write whose reply is not known. It is repeated before any other write; until then the session may or may not be as it says.
    pub(super) pending: Option<Arc<PendingWrite>>,
    /// The pending cookie of the response.
    pub(super) cookie: Option<CookieChange>,
    /// Why the session that the request presented has ended.
    pub(super) end_reason: Option<EndReason>,
    /// Identifies this request's claim to a single use, so that a claim whose reply was lost can be repeated.
    pub(super) claim: Option<Version>,
    /// The store gave less than its usual guarantees at the lookup.
    pub(super) degraded: bool,
    pub(super) outcome: Option<LookupOutcome>,
    /// The head of the response is sent: no new token can reach the client.
    pub(super) response_sent: bool,
    /// The generation of the changes whose loss is already reported.
    pub(super) reported: Option<u64>,
}

/// What is known about the stored session.
pub(super) enum Phase {
    NotLoaded,
    /// The lookup failed.
    Unavailable,
    /// The lookup failed, and the signature of a JWT identifies the session and its user.
    SignatureOnly,
    /// The request has no live session.
    Absent,
    /// Another request ended the session, or a single use did. It cannot be changed any more.
    Ended,
    Live(Box<Snapshot>),
    /// A login is under way.
    Transfer(Box<LoginTransfer>),
}

/// A stored session as last seen.
pub(super) struct Snapshot {
    pub(super) id: SessionId,
    pub(super) token: TokenOrigin,
    pub(super) record: Arc<Record>,
    pub(super) last_seen: Timestamp,
    pub(super) expires_at: Timestamp,
    /// Created by this request.
    pub(super) is_new: bool,
    /// Another request rotated the token of this one without a grace window, perhaps because the token was stolen. So this request
    /// does not learn the new token, unless it saves a login or a rotation itself.
    pub(super) token_superseded: bool,
}

/// A login replaces the `old` session by a `new` one, in the slot of its user.
pub(super) struct LoginTransfer {
    pub(super) old: Snapshot,
    pub(super) new: Snapshot,
    /// The generation of the changes that the new session contains.
    pub(super) generation: u64,
    pub(super) stage: TransferStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransferStage {
    /// The new session is stored as pending. Next: end the old one.
    Pending,
    /// Another request wrote the old session. Next: copy that to the new one.
    Stale,
    /// The old session has ended, replaced by the new one. Next: activate the new one.
    Replaced,
    /// The same, but the new session is gone. Next: create it again.
    Lost,
    /// The old session has ended for another reason. Next: activate the new one without the content of the old one.
    Detached,
}

impl TransferStage {
    /// Whether the old session has ended.
    pub(super) fn old_has_ended(self) -> bool {
        matches!(self, Self::Replaced | Self::Lost | Self::Detached)
    }
}

/// Where the current token of a session is.
pub(super) enum TokenOrigin {
    /// Among the tokens that the request presented, at this index.
    Presented(usize),
    /// Not here: the request presented a JWT.
    Elsewhere,
    New(Box<Token>),
}

/// The content of the `Set-Cookie`.
pub(super) enum CookieChange {
    /// The current token, and the expiry of a cookie that outlives the browser.
    Give { expires: Option<Timestamp> },
    /// No session.
    Remove,
}

impl CookieChange {
    pub(super) fn give(record: &Record) -> Self {
        Self::Give { expires: cookie_expiry(record) }
    }
}

/// When the cookie expires, if it outlives the browser.
pub(super) fn cookie_expiry(record: &Record) -> Option<Timestamp> {
    record.persistent.then(|| record.absolute_deadline())
}

/// The result of a lookup.
pub(super) struct LookupResult {
    pub(super) phase: Phase,
    pub(super) end_reason: Option<EndReason>,
    /// What the request does with the token by itself: [`Action::Renew`] or [`Action::Confirm`].
    pub(super) action: Option<Action>,
    pub(super) cookie: Option<CookieChange>,
    pub(super) degraded: bool,
    pub(super) outcome: LookupOutcome,
}

impl LookupResult {
    /// Whether the store says that the presented session has ended or is unknown.
    pub(super) fn is_dead(&self) -> bool {
        matches!(self.outcome, LookupOutcome::Ended(_) | LookupOutcome::Unknown)
    }

    pub(super) fn without_session(phase: Phase, end_reason: Option<EndReason>, outcome: LookupOutcome) -> Self {
        Self { phase, end_reason, action: None, cookie: None, degraded: false, outcome }
    }

    pub(super) fn without_store(phase: Phase, outcome: LookupOutcome) -> Self {
        Self { degraded: true, ..Self::without_session(phase, None, outcome) }
    }
}

impl Snapshot {
    /// A session that this request created.
    pub(super) fn created(new: &NewSession) -> Self {
        let record = new.entry.record.clone();
        Self {
            id: new.id,
            token: TokenOrigin::New(Box::new(new.token.clone())),
            last_seen: record.written_at,
            expires_at: record.written_at.plus(new.entry.ttl),
            record,
            is_new: true,
            token_superseded: false,
        }
    }

    /// `entry` is stored.
    pub(super) fn stored(&mut self, entry: &Entry) {
        self.record = entry.record.clone();
        self.last_seen = entry.record.written_at;
        self.expires_at = entry.record.written_at.plus(entry.ttl);
    }

    /// The token with which the request identified the session, or that it created.
    pub(super) fn token(&self, presented: &PresentedCredentials) -> Option<Token> {
        match (&self.token, presented) {
            (TokenOrigin::New(token), _) => Some(Token::clone(token)),
            (TokenOrigin::Presented(index), PresentedCredentials::Tokens(_, candidates)) => {
                candidates.get(*index).cloned()
            }
            (TokenOrigin::Presented(_) | TokenOrigin::Elsewhere, _) => None,
        }
    }

    /// The token that the client may have.
    pub(super) fn token_for_client(&self, presented: &PresentedCredentials) -> Option<Token> {
        self.token(presented).filter(|_| !self.token_superseded)
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::NotLoaded,
            changes: Changes::default(),
            pending: None,
            cookie: None,
            end_reason: None,
            claim: None,
            degraded: false,
            outcome: None,
            response_sent: false,
            reported: None,
        }
    }

    /// Stores the result of a lookup, unless another clone was faster: the session may have changed since.
    pub(super) fn looked_up(&mut self, result: LookupResult) {
        if let Phase::NotLoaded | Phase::Unavailable = self.phase {
            self.phase = result.phase;
            self.end_reason = result.end_reason;
            self.cookie = result.cookie;
            self.degraded = result.degraded;
            self.outcome = Some(result.outcome);
            if let Some(action) = result.action {
                self.changes.set_due(action);
            }
        }
    }

    /// The identity of this request's claim to a single use.
    pub(super) fn claim(&mut self) -> Result<Version, getrandom::Error> {
        match self.claim {
            Some(claim) => Ok(claim),
            None => Ok(*self.claim.insert(Version::first()?)),
        }
    }

    /// The session has ended, by a single use of this request or by another request. Unsaved changes are lost.
    pub(super) fn set_ended(&mut self, by_us: bool, end_reason: Option<EndReason>) {
        self.changes.reset();
        self.pending = None;
        self.phase = Phase::Ended;
        self.end_reason = end_reason;
        // Otherwise the request that ended the session removes the cookie.
        self.cookie = by_us.then_some(CookieChange::Remove);
    }

    /// The stored session, unless this request ends it.
    pub(super) fn live(&self) -> Option<&Snapshot> {
        match &self.phase {
            Phase::Live(_) | Phase::Transfer(_) if self.is_leaving() => None,
            Phase::Live(live) => Some(live),
            Phase::Transfer(transfer) => Some(&transfer.new),
            _ => None,
        }
    }

    /// The same, if no login is under way.
    pub(super) fn settled(&self) -> Option<&Snapshot> {
        match &self.phase {
            Phase::Live(live) if !self.is_leaving() => Some(live),
            _ => None,
        }
    }

    /// The session that is active in the store: during a login, the old one until it has ended.
    pub(super) fn active(&self) -> Option<&Snapshot> {
        match &self.phase {
            Phase::Transfer(transfer) if !self.is_leaving() => match transfer.stage {
                TransferStage::Pending | TransferStage::Stale => Some(&transfer.old),
                TransferStage::Replaced => Some(&transfer.new),
                TransferStage::Lost | TransferStage::Detached => None,
            },
            _ => self.settled(),
        }
    }

    /// Whether the request leaves the stored session: destroys it, or logs in as another user.
    fn is_leaving(&self) -> bool {
        self.changes.action() == Some(Action::Destroy) || self.changes.discards_previous()
    }

    /// Whether a save would write anything.
    pub(super) fn is_dirty(&self) -> bool {
        self.pending.is_some()
            || match &self.phase {
                Phase::NotLoaded | Phase::Unavailable | Phase::SignatureOnly | Phase::Ended => false,
                Phase::Absent => self.changes.creates(),
                Phase::Live(_) => self.changes.action().is_some() || !self.changes.is_empty(),
                Phase::Transfer(_) => true,
            }
    }

    /// Whether something is lost if it is not saved. The next request makes up for what is due.
    pub(super) fn has_unsaved(&self) -> bool {
        let is_due = matches!(self.changes.action(), Some(Action::Renew | Action::Confirm));
        self.is_dirty() && (!is_due || !self.changes.is_empty())
    }

    /// The value of `key`, with the unsaved changes.
    pub(super) fn value(&self, key: &str) -> Option<&Json> {
        self.changes.value(key).unwrap_or_else(|| self.stored_value(key))
    }

    fn stored_value(&self, key: &str) -> Option<&Json> {
        if self.changes.is_cleared() { None } else { self.live()?.record.data.get(key) }
    }

    /// All values, with the unsaved changes.
    pub(super) fn values(&self) -> Data {
        let mut values = self.live().map(|live| live.record.data.clone()).unwrap_or_default();
        self.changes.apply_to_values(&mut values);
        values
    }

    pub(super) fn user(&self) -> Option<&Arc<str>> {
        self.changes.login().or_else(|| self.live()?.record.user.as_ref())
    }

    /// Sets or removes a value. Returns whether that changes anything.
    pub(super) fn set(&mut self, key: &str, value: Option<Json>) -> bool {
        if self.value(key) == value.as_ref() {
            return false;
        }
        let is_stored = self.pending.is_none() && self.stored_value(key) == value.as_ref();
        let stored_key = self.live().and_then(|live| live.record.data.get_key_value(key)).map(|(key, _)| key.clone());
        self.changes.set(key, stored_key.as_ref(), value, is_stored);
        true
    }

    pub(super) fn clear(&mut self) {
        let stored = self.pending.is_some() || self.live().is_some_and(|live| !live.record.data.is_empty());
        self.changes.clear(stored);
    }

    pub(super) fn set_lifetime(&mut self, lifetime: Lifetime) {
        let unchanged = !self.changes.sets_lifetime()
            && self.changes.login().is_none() // which sets the lifetime of the layer
            && self.live().is_some_and(|Snapshot { record, .. }| {
                record.idle_timeout == lifetime.idle_timeout()
                    && record.absolute_timeout == lifetime.absolute_timeout()
                    && record.persistent == lifetime.is_persistent()
            });
        if !unchanged {
            self.changes.set_lifetime(lifetime);
        }
    }

    pub(super) fn login(&mut self, user: Arc<str>) {
        // Nothing of one user's session is handed to another user.
        if self.user().is_some_and(|current| *current != user) {
            self.changes.discard(self.may_be_stored());
        }
        if let Phase::Ended = self.phase {
            self.phase = Phase::Absent;
        }
        self.rotate();
        self.changes.set_login(user);
    }

    /// # Errors
    /// If a new token cannot reach the client any more.
    pub(super) fn check_before_response(&self) -> Result<(), SessionError> {
        if self.response_sent { Err(SessionError::ResponseSent) } else { Ok(()) }
    }

    pub(super) fn rotate(&mut self) {
        if self.may_be_stored() && self.changes.action() != Some(Action::Destroy) {
            self.changes.set_action(Some(Action::Rotate));
        }
    }

    pub(super) fn destroy(&mut self) {
        self.changes.reset();
        self.changes.set_action(self.may_be_stored().then_some(Action::Destroy));
        if let Phase::Absent = self.phase {
            self.cookie = Some(CookieChange::Remove); // of a session that ended long ago
        }
    }

    /// Whether the store has the session, or may have it because of a write whose reply is not known.
    fn may_be_stored(&self) -> bool {
        self.pending.is_some() || matches!(self.phase, Phase::Live(_) | Phase::Transfer(_))
    }
}
