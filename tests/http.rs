//! What clients see, over real HTTP.

mod support;

use serde_json::json;
use support::app::App;
use tower_keep::{MemoryStore, SessionLayer};

#[tokio::test]
async fn a_value_lives_from_request_to_request() {
    let app = App::start(SessionLayer::new(MemoryStore::new())).await;
    let client = app.client();
    client.one(json!(["insert", "k", 1])).await;
    assert_eq!(client.one(json!(["get", "k"])).await, 1);
    assert_eq!(app.client().one(json!(["get", "k"])).await, json!(null));
}
