//! What is logged, at the most talkative level.

use std::{
    cell::RefCell,
    io::{self, Write},
    sync::Once,
};

use tracing::Level;

thread_local! {
    static WRITTEN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Everything that this thread has logged since: with a runtime of one thread, everything that the test did.
pub struct Log(());

impl Log {
    pub fn capture() -> Self {
        // One for all threads: which events are wanted at all is decided once in a program, whoever comes first.
        static SUBSCRIBE: Once = Once::new();
        SUBSCRIBE.call_once(|| {
            tracing_subscriber::fmt().with_max_level(Level::TRACE).with_ansi(false).with_writer(|| ToThisThread).init();
            tracing::callsite::rebuild_interest_cache();
        });
        WRITTEN.with_borrow_mut(Vec::clear);
        Self(())
    }

    pub fn text(&self) -> String {
        WRITTEN.with_borrow(|written| String::from_utf8(written.clone()).unwrap())
    }
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
