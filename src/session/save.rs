//! Saving: sends one planned write after the other, until nothing is left to write.

use std::sync::Arc;

use super::{
    Inner, SessionError,
    apply::{Effects, apply},
    plan::{Environment, NextWrite, plan},
    state::Phase,
    write::{Delivery, NewSession, PendingWrite, Reply, Write},
};
use crate::{
    ended::EndReason,
    event::Event,
    store::{End, SessionStore, StoreError, StoreExt},
};

/// How many writes a save sends before it gives up. Each one that fails is another request's success, so only many requests that write
/// one session at the same moment come close.
const MAX_WRITES: usize = 128;

impl Inner {
    /// Saves all changes.
    pub(super) async fn save(&self, delivery: Delivery) -> Result<(), SessionError> {
        let _turn = self.turn().await;
        let mut events = Vec::new();
        let saved = self.send_writes(delivery, &mut events).await;
        self.publish(&events).await; // last, so that it takes no time from the writes
        saved
    }

    async fn send_writes(&self, delivery: Delivery, events: &mut Vec<Event>) -> Result<(), SessionError> {
        let mut place_in_queue = None;
        for _ in 0..MAX_WRITES {
            let env = self.environment();
            let Some((sent, repeated)) = self.next_write(&env, delivery)? else {
                return if let Phase::Ended = self.state().phase { Err(SessionError::Ended) } else { Ok(()) };
            };
            if self.state().response_sent {
                self.time_budget.reset(); // no client waits
            }
            let reply = self.time_budget.spend(self.send(&sent.write)).await;
            let reply = reply.inspect_err(|_| self.context.counters.outages.count())?;
            let effects = apply(&mut self.state(), &env, &sent, repeated, reply);
            self.report(&effects, &sent.write)?;
            if let Write::End { id, reason: EndReason::LoggedOut } = sent.write {
                Box::pin(self.log_out_others(id)).await?; // rare, and large
            }
            if effects.is_conflict && place_in_queue.is_none() {
                let id = sent.write.session();
                place_in_queue = Some(self.time_budget.wait_for(self.context.queues.wait(&id)).await); // once
            }
            if !effects.events.is_empty() {
                events.extend(self.context.record_events(effects.events, self.ip()));
            }
        }
        self.context.counters.gave_up();
        Err(SessionError::Conflict)
    }

    /// The write to send, and whether it is a repetition.
    fn next_write(
        &self,
        env: &Environment<'_>,
        delivery: Delivery,
    ) -> Result<Option<(Arc<PendingWrite>, bool)>, SessionError> {
        let state = &mut *self.state();
        let delivery = if state.response_sent { Delivery::Late } else { delivery };
        let next = plan(state, env, delivery);
        let pending = state.pending.take();
        let (pending, repeated) = match next? {
            NextWrite::Nothing => (None, false),
            NextWrite::Repeat => (pending, true),
            NextWrite::New(write) => {
                (Some(Arc::new(PendingWrite { generation: state.changes.generation(), write })), false)
            }
        };
        state.pending = pending.clone();
        Ok(pending.map(|write| (write, repeated)))
    }

    async fn send(&self, write: &Write) -> Result<Reply, StoreError> {
        let store = self.context.store();
        match write {
            Write::Create(NewSession { id, entry, .. }) => {
                let limits = self.context.limits_of(entry.record.user())?;
                store.create(id, entry.clone(), limits).await.map(Reply::Created)
            }
            Write::Update { id, expected, entry, .. } => {
                store.update(id, *expected, entry.clone()).await.map(Reply::Updated)
            }
            Write::End { id, reason } => store.end(id, End::For(*reason)).await.map(Reply::Ended),
            Write::Replace { id, expected, successor } => {
                store.replace(id, *expected, successor).await.map(Reply::Ended)
            }
        }
    }

    /// Reports the effects of a write except its events.
    fn report(&self, effects: &Effects, write: &Write) -> Result<(), SessionError> {
        let (context, counters) = (&*self.context, &self.context.counters);
        if let Some(record) = &effects.ended {
            context.record_lifetime(record);
        }
        if effects.ended_concurrently {
            counters.ended_concurrently();
        }
        if let Some(overwritten) = effects.overwrites {
            counters.conflict(overwritten);
        }
        if let (true, Write::Create(new)) = (effects.is_full, write) {
            context.refused(new.entry.record.user(), self.ip());
            return Err(SessionError::Full);
        }
        Ok(())
    }
}
