//! Captured logs, at level TRACE.

use std::{
    cell::{Cell, RefCell},
    io::{self, Write},
    sync::Once,
};

use tracing_subscriber::{filter::dynamic_filter_fn, layer::SubscriberExt, util::SubscriberInitExt};

thread_local! {
    static CAPTURES: Cell<bool> = const { Cell::new(false) };
    static WRITTEN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Everything that this thread has logged since: with a single-threaded runtime, everything of the test.
pub struct Log(());

impl Log {
    pub fn capture() -> Self {
        subscribe();
        WRITTEN.with_borrow_mut(Vec::clear);
        Self(())
    }

    pub fn text(&self) -> String {
        WRITTEN.with_borrow(|written| String::from_utf8(written.clone()).unwrap())
    }
}

/// Captures what this thread logs, for [`Log`] and [`Trace`](super::watch::Trace): a process has only one subscriber.
pub fn subscribe() {
    static SUBSCRIBE: Once = Once::new();
    SUBSCRIBE.call_once(|| {
        let text = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(|| ToThisThread);
        tracing_subscriber::registry()
            .with(dynamic_filter_fn(|_, _| CAPTURES.get()))
            .with(text)
            .with(super::watch::ToThisThread)
            .init();
        tracing::callsite::rebuild_interest_cache();
    });
    CAPTURES.set(true);
}

struct ToThisThread;

impl Write for ToThisThread {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        WRITTEN.with_borrow_mut(|written| written.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
