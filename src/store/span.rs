//! The span of a store operation.

/// The target of the spans.
pub(super) const TARGET: &str = "tower_keep::store";

/// The span of the current operation, if it is recorded. A span of another target is not ours to write to.
#[cfg(feature = "redis")]
pub(super) fn current() -> Option<tracing::Span> {
    let enabled = tracing::span_enabled!(target: TARGET, tracing::Level::DEBUG);
    enabled
        .then(tracing::Span::current)
        .filter(|span| span.metadata().is_some_and(|metadata| metadata.target() == TARGET))
}
