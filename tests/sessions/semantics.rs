//! Known mistakes of other session libraries, none of which may happen here: in memory, in Redis, and with two instances on one
//! Redis.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::support::{
    app::App,
    client::{Client, Reply},
    eventually,
    redis_server::RedisServer,
};
use axum::{Json, routing::post};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tower_keep::{
    MemoryStore, OnOutage, Session, SessionCookie, SessionError, SessionLayer, Token,
    store::{
        Health, Operation, SessionStore, StoreError, StoreExt, StoreFuture, StoreWrapper,
        redis::{RedisConfig, RedisStore},
    },
};

const COOKIE: &str = "session";
/// A token that was never issued.
const PLANTED: &str = "plantedplantedplantedplantedplantedplantedplantedplanted";

/// A fault of the store operations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Fault {
    #[default]
    None,
    /// Operations fail without being applied.
    Down,
    /// Operations are applied, and the replies are lost.
    Deaf,
    /// Writes wait before they are applied.
    HeldBefore,
    /// Writes wait after they are applied.
    HeldAfter,
}

/// A switch between a layer and its store. Clones share it.
#[derive(Clone, Default)]
struct Switch(Arc<SwitchState>);

#[derive(Default)]
struct SwitchState {
    fault: Mutex<Fault>,
    failed: AtomicBool,
    held: Notify,
    released: Notify,
}

impl Switch {
    fn set(&self, fault: Fault) {
        *self.0.fault.lock().unwrap() = fault;
    }

    fn fault(&self) -> Fault {
        *self.0.fault.lock().unwrap()
    }

    /// Waits until a write is held.
    async fn held(&self) {
        self.0.held.notified().await;
    }

    /// Releases it, and holds no other.
    fn release(&self) {
        self.set(Fault::None);
        self.0.released.notify_one();
    }

    fn outage<T>(&self) -> Result<T, StoreError> {
        self.0.failed.store(true, Ordering::SeqCst);
        Err(StoreError::Outage("the test says so".into()))
    }

    async fn hold(&self) {
        self.0.held.notify_one();
        self.0.released.notified().await;
    }
}

/// A store behind a switch.
struct Switched {
    store: Arc<dyn SessionStore>,
    switch: Switch,
}

impl StoreWrapper for Switched {
    type Inner = dyn SessionStore;

    fn inner(&self) -> &Self::Inner {
        &*self.store
    }

    fn call<'s, O: Operation + 's>(&'s self, operation: O) -> StoreFuture<'s, O::Reply> {
        StoreFuture::boxed(async move {
            let is_read = ["load", "list", "scan", "count"].contains(&operation.name());
            match self.switch.fault() {
                Fault::Down => self.switch.outage(),
                Fault::Deaf => {
                    operation.run(&*self.store).await?;
                    self.switch.outage()
                }
                Fault::HeldBefore if !is_read => {
                    self.switch.hold().await;
                    operation.run(&*self.store).await
                }
                Fault::HeldAfter if !is_read => {
                    let reply = operation.run(&*self.store).await;
                    self.switch.hold().await;
                    reply
                }
                Fault::None | Fault::HeldBefore | Fault::HeldAfter => operation.run(&*self.store).await,
            }
        })
    }

    fn wrapper_health(&self) -> StoreFuture<'_, Health> {
        self.store.health()
    }
}

/// One or two instances of the service, and their store.
struct World {
    instances: Vec<(SessionLayer, App)>,
    switch: Switch,
    memory: Option<MemoryStore>,
    redis: Option<RedisServer>,
}

impl World {
    async fn memory() -> Self {
        let memory = MemoryStore::new();
        Self::of(vec![Arc::new(memory.clone())], Some(memory), None).await
    }

    async fn redis() -> Self {
        let redis = RedisServer::start().await;
        Self::of(vec![redis_store(&redis)], None, Some(redis)).await
    }

    async fn two_instances() -> Self {
        let redis = RedisServer::start().await;
        Self::of(vec![redis_store(&redis), redis_store(&redis)], None, Some(redis)).await
    }

    async fn of(stores: Vec<Arc<dyn SessionStore>>, memory: Option<MemoryStore>, redis: Option<RedisServer>) -> Self {
        let switch = Switch::default();
        let mut instances = Vec::new();
        for store in stores {
            let store = Switched { store, switch: switch.clone() };
            let layer = SessionLayer::new(store).cookie(SessionCookie::development());
            instances.push((layer.clone(), serve(layer, switch.clone()).await));
        }
        Self { instances, switch, memory, redis }
    }

    fn app(&self) -> &App {
        &self.instances[0].1
    }

    /// The other instance, if there are two.
    fn other(&self) -> &App {
        &self.instances[self.instances.len() - 1].1
    }

    fn layer(&self) -> &SessionLayer {
        &self.instances[0].0
    }

    fn client(&self) -> Client {
        self.app().client()
    }

    /// A second tab of `client`, which uses the other instance.
    fn tab(&self, client: &Client) -> Client {
        client.at(&self.other().url())
    }

    /// A client whose session has `k` = 1.
    async fn visitor(&self) -> Client {
        let client = self.client();
        client.one(json!(["insert", "k", 1])).await;
        client
    }

    /// A client who is logged in, with `k` = 1 and `l` = 2.
    async fn member(&self, user: &str) -> Client {
        let client = self.client();
        client.perform(json!([["login", user], ["insert", "k", 1], ["insert", "l", 2]])).await;
        client
    }

    fn nobody(&self) -> Pin<Box<dyn Future<Output = Client> + '_>> {
        Box::pin(async { self.client() })
    }

    fn anonymous(&self) -> Pin<Box<dyn Future<Output = Client> + '_>> {
        Box::pin(self.visitor())
    }

    fn logged_in(&self) -> Pin<Box<dyn Future<Output = Client> + '_>> {
        Box::pin(self.member("ana"))
    }

    /// The number of live sessions.
    async fn count(&self) -> usize {
        match (&self.memory, &self.redis) {
            (Some(memory), _) => memory.len(),
            (_, Some(redis)) => redis_store(redis).count().await.unwrap() as usize,
            _ => unreachable!(),
        }
    }

    /// The record of the only session.
    async fn stored(&self, client: &Client) -> Vec<u8> {
        let id = Token::parse(token(client)).unwrap().id();
        match (&self.memory, &self.redis) {
            (Some(memory), _) => memory.load(&id).await.unwrap().live().unwrap().record.encode(),
            (_, Some(redis)) => redis_store(redis).load(&id).await.unwrap().live().unwrap().record.encode(),
            _ => unreachable!(),
        }
    }

    /// Whether `token` is valid on any instance.
    async fn opens(&self, token: &str) -> bool {
        let mut answers = Vec::new();
        for (_, app) in &self.instances {
            let client = app.client();
            client.set_cookie(COOKIE, token);
            answers.push(!client.one(json!(["id"])).await.is_null());
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "the instances agree");
        answers[0]
    }

    /// Sends `steps` as `client`. While its handler waits at `slow`, `concurrent` happens.
    async fn slowly(&self, client: &Client, steps: Value, concurrent: impl Future<Output = ()>) -> Reply {
        let concurrent = async {
            self.app().reached("slow").await;
            concurrent.await;
            self.app().open("slow");
        };
        tokio::join!(client.post("/do", &steps), concurrent).0
    }
}

fn redis_store(redis: &RedisServer) -> Arc<dyn SessionStore> {
    let patience = Duration::from_secs(10);
    let config = RedisConfig::from_url(&redis.url()).unwrap().timeout(patience).connect_timeout(patience);
    Arc::new(RedisStore::new(config))
}

fn token(client: &Client) -> String {
    client.cookie(COOKIE).expect("a cookie")
}

#[track_caller]
fn assert_not_delivered(reply: &Reply) {
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(reply.set_cookies(), [""; 0], "no cookie is to be touched");
}

/// The service, with routes whose explicit save fails.
async fn serve(layer: SessionLayer, switch: Switch) -> App {
    let saving = switch.clone();
    // The first save fails. The handler ignores that and continues.
    let save_fails = post(async move |session: Session, Json(plan): Json<Plan>| {
        apply(&session, &plan.before)?;
        switch.set(plan.fault());
        let failed = session.save().await.is_err();
        switch.set(Fault::None);
        apply(&session, &plan.after)?;
        Ok::<_, SessionError>(Json(failed))
    });
    // Something happens to the session during a save.
    let while_saving = post(async move |session: Session, Json(plan): Json<Plan>| {
        apply(&session, &plan.before)?;
        saving.set(plan.fault());
        let concurrent = async {
            saving.held().await;
            apply(&session, &plan.after)?;
            saving.release();
            Ok::<_, SessionError>(())
        };
        let (saved, done) = tokio::join!(session.save(), concurrent);
        done?;
        saved?;
        Ok::<_, SessionError>(Json(false))
    });
    App::serve(|router| router.route("/save-fails", save_fails).route("/while-saving", while_saving).layer(layer)).await
}

#[derive(Deserialize)]
struct Plan {
    fault: String,
    before: Vec<String>,
    after: Vec<String>,
}

impl Plan {
    fn fault(&self) -> Fault {
        match self.fault.as_str() {
            "down" => Fault::Down,
            "deaf" => Fault::Deaf,
            "before" => Fault::HeldBefore,
            "after" => Fault::HeldAfter,
            other => panic!("{other}"),
        }
    }
}

/// `insert k`, `login ana`, `logout`, `rotate`
fn apply(session: &Session, steps: &[String]) -> Result<(), SessionError> {
    for step in steps {
        match step.split_once(' ').unwrap_or((step, "")) {
            ("insert", key) => session.insert(key, &true)?,
            ("login", user) => session.login(user)?,
            ("logout", _) => session.logout()?,
            ("rotate", _) => session.rotate()?,
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}

/// A save that fails, and a save that is overtaken.
const GOES_WRONG: [(&str, &str); 4] =
    [("/save-fails", "down"), ("/save-fails", "deaf"), ("/while-saving", "before"), ("/while-saving", "after")];

/// Sends `before`, a failing save, and `after`.
async fn save_fails(client: &Client, (path, fault): (&str, &str), before: &[&str], after: &[&str]) {
    let reply = client.post(path, &json!({ "fault": fault, "before": before, "after": after })).await;
    assert_eq!(reply.status, StatusCode::OK, "{path} {fault}: {reply:?}");
    assert_eq!(reply.json(), json!(path == "/save-fails"), "the save failed as planned");
}

/// Each test in all places.
macro_rules! everywhere {
    ($($name:ident)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::World::memory().await).await;
            })*
        }
        mod redis {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::World::redis().await).await;
            })*
        }
        mod two_instances {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::World::two_instances().await).await;
            })*
        }
    };
}

everywhere! {
    an_unknown_token_is_never_adopted
    a_token_is_not_adopted_after_its_logout
    a_token_planted_before_login_is_invalid_afterwards
    logout_beats_a_slower_write
    logout_beats_20_slower_writes
    logout_beats_any_slower_request
    logout_beats_a_slower_rotation
    a_slower_request_that_saves_twice_creates_no_session
    a_slower_login_over_an_ended_session_creates_a_new_one
    a_slower_write_after_a_rotation_is_kept
    rotation_keeps_20_slower_writes
    one_of_two_concurrent_rotations_wins_and_both_get_its_token
    two_concurrent_logins_invalidate_the_old_token
    after_a_rotation_only_the_new_token_is_valid
    a_rotation_survives_a_failing_handler
    a_login_survives_a_failing_handler
    a_cancelled_request_leaves_the_session_as_it_was
    a_request_cancelled_before_the_store_is_called_changes_nothing
    a_request_cancelled_after_the_store_is_called_leaves_one_live_token
    every_single_mutator_is_saved
    a_change_without_effect_is_not_a_write
    an_outage_is_not_a_missing_session
    an_outage_of_a_save_changes_nothing
    a_save_with_a_lost_reply_is_not_applied_twice
    an_anonymous_request_during_an_outage_cannot_change_the_session
    concurrent_writes_of_different_keys_are_kept
    ten_concurrent_writes_of_different_keys_are_kept
    the_later_save_of_one_key_wins
    a_concurrent_remove_and_insert_are_both_kept
    a_login_over_another_user_keeps_no_values
    a_login_over_an_anonymous_session_keeps_its_values
    a_login_of_the_same_user_keeps_its_values
    an_insert_after_a_destroy_is_in_another_session
    logout_of_an_ended_session_is_not_an_error
    a_tab_whose_session_was_logged_out_elsewhere_is_logged_out
    login_and_logout_in_one_request_leave_nothing
    a_rotation_after_a_failed_save_is_applied
    a_login_after_a_failed_save_has_a_new_token
    a_logout_after_a_failed_save_ends_the_session
    a_logout_after_a_login_with_a_failed_save_leaves_nothing
    a_logout_after_a_rotation_with_a_failed_save_leaves_nothing
    a_login_after_a_failed_save_gives_no_values_to_another_user
    an_insert_after_a_logout_with_a_failed_save_is_in_another_session
    an_insert_after_a_failed_save_is_saved
}

async fn an_unknown_token_is_never_adopted(w: World) {
    for steps in [
        json!([["insert", "k", 1]]),
        json!([["clear"], ["insert", "k", 1]]),
        json!([["login", "ana"], ["insert", "k", 1]]),
        json!([["rotate"], ["insert", "k", 1]]),
        json!([["destroy"], ["insert", "k", 1]]),
        json!([["insert", "k", 1], ["save"], ["rotate"]]),
        json!([["lifetime", 60, 120, true], ["insert", "k", 1]]),
    ] {
        let client = w.client();
        client.set_cookie(COOKIE, PLANTED);
        client.perform(steps.clone()).await;
        assert_ne!(token(&client), PLANTED, "{steps}");
        assert!(!w.opens(PLANTED).await, "{steps}");
        assert_eq!(w.tab(&client).one(json!(["get", "k"])).await, 1, "{steps}");
    }
    // No other operation makes it known.
    let client = w.client();
    client.set_cookie(COOKIE, PLANTED);
    for steps in [
        json!([["get", "k"]]),
        json!([["clear"]]),
        json!([["remove", "k"]]),
        json!([["rotate"]]),
        json!([["save"]]),
        json!([["lifetime", 60, 120, true]]),
        json!([["login", "ana"], ["logout"]]),
    ] {
        client.perform(steps.clone()).await;
        client.set_cookie(COOKIE, PLANTED);
        assert!(!w.opens(PLANTED).await, "{steps}");
    }
}

async fn a_token_is_not_adopted_after_its_logout(w: World) {
    let client = w.member("ana").await;
    let old = token(&client);
    client.one(json!(["logout"])).await;
    assert_eq!(client.cookie(COOKIE), None);
    let thief = w.tab(&client);
    thief.set_cookie(COOKIE, &old);
    thief.one(json!(["insert", "k", 3])).await;
    assert_ne!(token(&thief), old);
    assert!(!w.opens(&old).await);
    let seen = thief.perform(json!([["user"], ["get", "k"], ["get", "l"]])).await;
    assert_eq!(json!(seen), json!([null, 3, null]));
}

async fn a_token_planted_before_login_is_invalid_afterwards(w: World) {
    let thief = w.visitor().await;
    let victim = w.client();
    victim.set_cookie(COOKIE, &token(&thief));
    victim.one(json!(["login", "ana"])).await;
    assert_ne!(token(&victim), token(&thief));
    assert_eq!(w.tab(&victim).one(json!(["user"])).await, "ana");
    assert!(!w.opens(&token(&thief)).await);
    assert_eq!(w.count().await, 1);
}

async fn logout_beats_a_slower_write(w: World) {
    let client = w.member("ana").await;
    let (old, tab) = (token(&client), w.tab(&client));
    let logout = async {
        tab.one(json!(["logout"])).await;
    };
    let reply = w.slowly(&client, json!([["get", "k"], ["gate", "slow"], ["insert", "k", 2]]), logout).await;
    assert_not_delivered(&reply);
    assert!(!w.opens(&old).await);
    assert_eq!(w.count().await, 0);
    assert_eq!(w.layer().stats().ended_concurrently, 1);
}

async fn logout_beats_20_slower_writes(w: World) {
    during_20_slower_writes(&w, json!(["logout"])).await;
    assert_eq!(w.count().await, 0);
    let ended: u64 = w.instances.iter().map(|(layer, _)| layer.stats().ended_concurrently).sum();
    assert_eq!(ended, 20);
}

async fn rotation_keeps_20_slower_writes(w: World) {
    let tab = during_20_slower_writes(&w, json!(["rotate"])).await;
    assert_eq!(w.count().await, 1);
    for n in 0..20 {
        assert_eq!(tab.one(json!(["get", format!("k{n}")])).await, n);
    }
}

/// Returns the tab that did `step`. The other tab does not have the new cookie.
async fn during_20_slower_writes(w: &World, step: Value) -> Client {
    let client = w.member("ana").await;
    let (old, tab) = (token(&client), w.tab(&client));
    let writers = (0..20).map(|n| {
        let (gate, app) = (format!("slow{n}"), if n % 2 == 0 { w.app() } else { w.other() });
        let steps = json!([["load"], ["gate", gate], ["insert", format!("k{n}"), n]]);
        let twin = client.at(&app.url());
        (app, gate, tokio::spawn(async move { twin.post("/do", &steps).await }))
    });
    let writers: Vec<_> = writers.collect();
    for (app, gate, _) in &writers {
        app.reached(gate).await;
    }
    tab.one(step).await;
    for (app, gate, _) in &writers {
        app.open(gate);
    }
    for (_, _, writer) in writers {
        assert_not_delivered(&writer.await.unwrap());
    }
    assert!(!w.opens(&old).await);
    tab
}

async fn logout_beats_any_slower_request(w: World) {
    for step in [
        json!(["insert", "k", 5]),
        json!(["remove", "k"]),
        json!(["take", "k"]),
        json!(["clear"]),
        json!(["lifetime", 60, 120, true]),
        json!(["get", "k"]),
    ] {
        let client = w.member("ana").await;
        let (old, tab) = (token(&client), w.tab(&client));
        let logout = async {
            tab.one(json!(["logout"])).await;
        };
        let reply = w.slowly(&client, json!([["load"], ["gate", "slow"], step]), logout).await;
        assert_not_delivered(&reply);
        assert!(!w.opens(&old).await, "{step}");
        assert_eq!(w.count().await, 0, "{step}");
    }
}

/// Its cookie would replace that of the other tab.
async fn a_slower_request_that_saves_twice_creates_no_session(w: World) {
    {
        let client = w.member("ana").await;
        let tab = w.tab(&client);
        let concurrent = async {
            tab.one(json!(["logout"])).await;
        };
        let steps = json!([["load"], ["gate", "slow"], ["insert", "k", 2], ["save"], ["insert", "l", 3]]);
        let reply = w.slowly(&client, steps, concurrent).await;
        // A handler that saves explicitly gets the error.
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
        assert_eq!(reply.set_cookies(), [""; 0], "no cookie is to be touched");
        assert_eq!(w.count().await, 0);
    }
}

async fn logout_beats_a_slower_rotation(w: World) {
    let client = w.member("ana").await;
    let (old, tab) = (token(&client), w.tab(&client));
    let logout = async {
        tab.one(json!(["logout"])).await;
    };
    let steps = json!([["load"], ["gate", "slow"], ["insert", "k", 2], ["rotate"]]);
    assert_not_delivered(&w.slowly(&client, steps, logout).await);
    assert!(!w.opens(&old).await);
    assert_eq!(w.count().await, 0);
}

async fn a_slower_login_over_an_ended_session_creates_a_new_one(w: World) {
    let client = w.member("ana").await;
    let (old, tab) = (token(&client), w.tab(&client));
    let logout = async {
        tab.one(json!(["logout"])).await;
    };
    let reply = w.slowly(&client, json!([["load"], ["gate", "slow"], ["login", "bob"]]), logout).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_ne!(token(&client), old);
    assert!(!w.opens(&old).await);
    let seen = client.perform(json!([["user"], ["get", "k"], ["get", "l"]])).await;
    assert_eq!(json!(seen), json!(["bob", null, null]));
    assert_eq!(w.count().await, 1);
}

async fn a_slower_write_after_a_rotation_is_kept(w: World) {
    let client = w.member("ana").await;
    let (old, tab) = (token(&client), w.tab(&client));
    let rotate = async {
        tab.one(json!(["rotate"])).await;
    };
    let reply = w.slowly(&client, json!([["load"], ["gate", "slow"], ["insert", "k", 2]]), rotate).await;
    assert_not_delivered(&reply);
    assert!(!w.opens(&old).await);
    let seen = tab.perform(json!([["user"], ["get", "k"]])).await;
    assert_eq!(json!(seen), json!(["ana", 2]), "the request was good when it came");
    assert_eq!(w.count().await, 1);
    assert_eq!(w.layer().stats().ended_concurrently, 0);
}

async fn one_of_two_concurrent_rotations_wins_and_both_get_its_token(w: World) {
    let client = w.member("ana").await;
    let (old, tab) = (token(&client), w.tab(&client));
    let rotate = async {
        tab.one(json!(["rotate"])).await;
    };
    let reply = w.slowly(&client, json!([["load"], ["gate", "slow"], ["rotate"]]), rotate).await;
    assert_eq!(reply.set_cookies().len(), 1);
    assert_eq!(
        token(&client),
        token(&tab),
        "in whatever order the responses arrive, the client has the one that counts"
    );
    assert!(!w.opens(&old).await);
    assert_eq!(tab.one(json!(["user"])).await, "ana");
    assert_eq!(w.count().await, 1);
}

async fn two_concurrent_logins_invalidate_the_old_token(w: World) {
    let client = w.visitor().await;
    let (old, tab) = (token(&client), w.tab(&client));
    let login = async {
        tab.one(json!(["login", "ana"])).await;
    };
    let reply = w.slowly(&client, json!([["load"], ["gate", "slow"], ["login", "ana"]]), login).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert!(!w.opens(&old).await);
    assert_eq!(client.one(json!(["user"])).await, "ana");
    assert_eq!(tab.one(json!(["user"])).await, "ana");
}

async fn after_a_rotation_only_the_new_token_is_valid(w: World) {
    let client = w.member("ana").await;
    let mut tokens = vec![token(&client)];
    for _ in 0..5 {
        client.one(json!(["rotate"])).await;
        tokens.push(token(&client));
        assert_eq!(w.count().await, 1);
    }
    let last = tokens.pop().unwrap();
    for token in tokens {
        assert!(!w.opens(&token).await);
    }
    assert!(w.opens(&last).await);
    let seen = w.tab(&client).perform(json!([["user"], ["get", "k"], ["get", "l"], ["is_new"]])).await;
    assert_eq!(json!(seen), json!(["ana", 1, 2, false]));
}

async fn a_rotation_survives_a_failing_handler(w: World) {
    let client = w.member("ana").await;
    let old = token(&client);
    let reply = client.post("/do", &json!([["rotate"], ["insert", "k", 2], ["status", 500]])).await;
    assert_eq!(reply.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_ne!(token(&client), old);
    assert!(!w.opens(&old).await);
    assert_eq!(w.tab(&client).one(json!(["get", "k"])).await, 2);
    assert_eq!(w.count().await, 1);
}

async fn a_login_survives_a_failing_handler(w: World) {
    let client = w.visitor().await;
    let old = token(&client);
    let reply = client.post("/do", &json!([["login", "ana"], ["status", 502]])).await;
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
    assert!(!w.opens(&old).await);
    assert_eq!(w.tab(&client).one(json!(["user"])).await, "ana");
    assert_eq!(w.count().await, 1);
}

/// Sends `steps` and disconnects when `reached`. Returns when the service has noticed.
async fn hangs_up(w: &World, client: &Client, steps: Value, reached: impl Future<Output = ()>) {
    let before = w.layer().stats().unsaved;
    tokio::select! {
        reply = client.post("/do", &steps) => panic!("{reply:?}"),
        () = reached => {}
    }
    eventually("the service notices", async || w.layer().stats().unsaved > before).await;
}

async fn a_cancelled_request_leaves_the_session_as_it_was(w: World) {
    for step in [json!(["rotate"]), json!(["login", "bob"]), json!(["logout"]), json!(["insert", "k", 9])] {
        let client = w.member("ana").await;
        let (old, before) = (token(&client), w.stored(&client).await);
        let steps = json!([["load"], step, ["gate", "never"]]);
        hangs_up(&w, &client, steps, w.app().reached("never")).await;
        assert_eq!(token(&client), old);
        assert_eq!(w.stored(&client).await, before, "{step}");
        let seen = w.tab(&client).perform(json!([["user"], ["get", "k"]])).await;
        assert_eq!(json!(seen), json!(["ana", 1]), "{step}");
        assert_eq!(w.count().await, 1, "{step}");
        client.one(json!(["logout"])).await;
    }
}

async fn a_request_cancelled_before_the_store_is_called_changes_nothing(w: World) {
    for step in [json!(["rotate"]), json!(["login", "bob"]), json!(["logout"]), json!(["insert", "k", 9])] {
        let client = w.member("ana").await;
        let before = w.stored(&client).await;
        w.switch.set(Fault::HeldBefore);
        hangs_up(&w, &client, json!([step]), w.switch.held()).await;
        w.switch.set(Fault::None);
        assert_eq!(w.stored(&client).await, before, "{step}");
        assert_eq!(w.tab(&client).one(json!(["user"])).await, "ana", "{step}");
        assert_eq!(w.count().await, 1, "{step}");
        client.one(json!(["logout"])).await;
    }
}

async fn a_request_cancelled_after_the_store_is_called_leaves_one_live_token(w: World) {
    let client = w.member("ana").await;
    let old = token(&client);
    w.switch.set(Fault::HeldAfter);
    hangs_up(&w, &client, json!([["rotate"]]), w.switch.held()).await;
    w.switch.set(Fault::None);
    assert_eq!(w.count().await, 1);
    assert!(!w.opens(&old).await, "the rotation was made: not both");
}

async fn every_single_mutator_is_saved(w: World) {
    let seen = json!([["user"], ["get", "k"], ["get", "l"], ["get", "new"]]);
    for (step, expected) in [
        (json!(["insert", "new", 3]), json!(["ana", 1, 2, 3])),
        (json!(["insert", "k", 7]), json!(["ana", 7, 2, null])),
        (json!(["insert", "k", null]), json!(["ana", null, 2, null])),
        (json!(["remove", "k"]), json!(["ana", null, 2, null])),
        (json!(["take", "l"]), json!(["ana", 1, null, null])),
        (json!(["clear"]), json!(["ana", null, null, null])),
        (json!(["login", "ana"]), json!(["ana", 1, 2, null])),
        (json!(["login", "bob"]), json!(["bob", null, null, null])),
        (json!(["logout"]), json!([null, null, null, null])),
        (json!(["destroy"]), json!([null, null, null, null])),
        (json!(["rotate"]), json!(["ana", 1, 2, null])),
    ] {
        let client = w.member("ana").await;
        let old = token(&client);
        client.one(step.clone()).await;
        assert_eq!(json!(w.tab(&client).perform(seen.clone()).await), expected, "{step}");
        let moves = matches!(step[0].as_str(), Some("login" | "logout" | "destroy" | "rotate"));
        assert_eq!(w.opens(&old).await, !moves, "{step}");
    }

    let client = w.member("ana").await;
    let before = client.one(json!(["expires_at"])).await.as_u64().unwrap();
    client.one(json!(["lifetime", 36_000, 72_000, true])).await;
    let after = w.tab(&client).one(json!(["expires_at"])).await.as_u64().unwrap();
    assert!(after > before + 30_000_000, "{before} {after}");
}

async fn a_change_without_effect_is_not_a_write(w: World) {
    let client = w.member("ana").await;
    let before = w.stored(&client).await;
    for steps in [
        json!([["get", "k"], ["contains", "k"], ["user"], ["id"], ["token"], ["is_new"]]),
        json!([["insert", "k", 1]]),
        json!([["remove", "none"], ["take", "none"]]),
        json!([["insert", "k", 5], ["insert", "k", 1]]),
        json!([["insert", "none", 5], ["remove", "none"]]),
        json!([["save"]]),
    ] {
        assert_not_delivered(&client.post("/do", &steps).await);
        assert_eq!(w.stored(&client).await, before, "{steps}");
    }
}

async fn an_outage_is_not_a_missing_session(w: World) {
    let client = w.member("ana").await;
    let (old, before) = (token(&client), w.stored(&client).await);
    for fault in [Fault::Down, Fault::Deaf] {
        w.switch.set(fault);
        for steps in [
            json!([["get", "k"]]),
            json!([["insert", "k", 9]]),
            json!([["login", "bob"]]),
            json!([["logout"]]),
            json!([["clear"], ["insert", "k", 9]]),
        ] {
            let reply = client.post("/do", &steps).await;
            assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{steps}");
            assert!(reply.header("retry-after").is_some(), "{steps}");
            assert_eq!(reply.set_cookies(), [""; 0], "{steps}");
        }
        w.switch.set(Fault::None);
        assert_eq!(token(&client), old);
        assert_eq!(w.stored(&client).await, before);
        let seen = w.tab(&client).perform(json!([["user"], ["get", "k"], ["get", "l"]])).await;
        assert_eq!(json!(seen), json!(["ana", 1, 2]));
        assert_eq!(w.count().await, 1);
    }
    assert_eq!(w.layer().stats().outages, 10);
}

async fn an_outage_of_a_save_changes_nothing(w: World) {
    for step in [json!(["insert", "k", 9]), json!(["rotate"]), json!(["login", "bob"]), json!(["logout"])] {
        let client = w.member("ana").await;
        let (old, before) = (token(&client), w.stored(&client).await);
        let fail = async { w.switch.set(Fault::Down) };
        let reply = w.slowly(&client, json!([["load"], ["gate", "slow"], step]), fail).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{step}");
        assert!(reply.header("retry-after").is_some(), "{step}");
        assert_eq!(reply.set_cookies(), [""; 0], "{step}");
        w.switch.set(Fault::None);
        assert_eq!(token(&client), old);
        assert_eq!(w.stored(&client).await, before, "{step}");
        assert_eq!(w.tab(&client).one(json!(["user"])).await, "ana", "{step}");
        assert_eq!(w.count().await, 1, "{step}");
        client.one(json!(["logout"])).await;
    }
}

async fn a_save_with_a_lost_reply_is_not_applied_twice(w: World) {
    for before in ["login ana", "insert x"] {
        for begin in [World::nobody, World::anonymous, World::logged_in] {
            let client = begin(&w).await;
            save_fails(&client, ("/save-fails", "deaf"), &[before], &[]).await;
            assert_eq!(w.count().await, 1, "{before}");
            assert!(w.opens(&token(&client)).await, "{before}");
            client.one(json!(["logout"])).await;
        }
    }
}

async fn an_anonymous_request_during_an_outage_cannot_change_the_session(w: World) {
    let app = App::start(w.layer().clone().on_outage(OnOutage::Anonymous)).await;
    let client = w.member("ana").await;
    let (old, before, tab) = (token(&client), w.stored(&client).await, client.at(&app.url()));
    w.switch.set(Fault::Down);
    let steps = json!([["is_degraded"], ["user"], ["get", "k"], ["id"], ["token"]]);
    let reply = tab.post("/do", &steps).await;
    assert_not_delivered(&reply);
    assert_eq!(reply.json(), json!([true, null, null, null, null]));
    for step in [json!(["insert", "k", 9]), json!(["login", "bob"]), json!(["logout"]), json!(["clear"])] {
        let reply = tab.post("/do", &json!([step])).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{step}");
        assert_eq!(reply.set_cookies(), [""; 0], "{step}");
    }
    w.switch.set(Fault::None);
    assert_eq!(token(&tab), old);
    assert_eq!(w.stored(&client).await, before);
    assert_eq!(tab.one(json!(["user"])).await, "ana");
}

/// The conflicts counted by all instances.
fn conflicts(w: &World) -> u64 {
    w.instances.iter().map(|(layer, _)| layer.stats().conflicts).sum()
}

async fn concurrent_writes_of_different_keys_are_kept(w: World) {
    let client = w.visitor().await;
    let tab = w.tab(&client);
    let write = async {
        tab.one(json!(["insert", "fast", 2])).await;
    };
    let reply = w.slowly(&client, json!([["load"], ["gate", "slow"], ["insert", "slow", 3]]), write).await;
    assert_not_delivered(&reply);
    let seen = client.perform(json!([["get", "k"], ["get", "fast"], ["get", "slow"]])).await;
    assert_eq!(json!(seen), json!([1, 2, 3]));
    assert_eq!(conflicts(&w), 1);
    assert_eq!(w.count().await, 1);
}

async fn ten_concurrent_writes_of_different_keys_are_kept(w: World) {
    let client = w.visitor().await;
    let mut writers = Vec::new();
    for n in 0..10 {
        let (gate, app) = (format!("slow{n}"), if n % 2 == 0 { w.app() } else { w.other() });
        let steps = json!([["load"], ["gate", gate], ["insert", format!("k{n}"), n]]);
        let twin = client.at(&app.url());
        writers.push((app, gate, tokio::spawn(async move { twin.post("/do", &steps).await })));
    }
    for (app, gate, _) in &writers {
        app.reached(gate).await;
    }
    for (app, gate, _) in &writers {
        app.open(gate);
    }
    for (_, _, writer) in writers {
        assert_not_delivered(&writer.await.unwrap());
    }
    let all: Vec<_> = (0..10).map(|n| json!(["get", format!("k{n}")])).collect();
    assert_eq!(json!(client.perform(json!(all)).await), json!([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]));
    assert_eq!(client.one(json!(["get", "k"])).await, 1);
    assert!(conflicts(&w) >= 9, "all but the first met another: {}", conflicts(&w));
}

async fn the_later_save_of_one_key_wins(w: World) {
    let client = w.visitor().await;
    let tab = w.tab(&client);
    // It starts later and is saved first.
    let write = async {
        tab.one(json!(["insert", "k", "first"])).await;
    };
    assert_not_delivered(&w.slowly(&client, json!([["insert", "k", "last"], ["gate", "slow"]]), write).await);
    assert_eq!(tab.one(json!(["get", "k"])).await, "last");
    assert_eq!(conflicts(&w), 1);
}

async fn a_concurrent_remove_and_insert_are_both_kept(w: World) {
    let client = w.member("ana").await;
    let tab = w.tab(&client);
    let write = async {
        tab.perform(json!([["remove", "k"], ["insert", "m", 3]])).await;
    };
    assert_not_delivered(&w.slowly(&client, json!([["insert", "n", 4], ["gate", "slow"]]), write).await);
    let seen = client.perform(json!([["contains", "k"], ["get", "l"], ["get", "m"], ["get", "n"]])).await;
    assert_eq!(json!(seen), json!([false, 2, 3, 4]));
}

async fn a_login_over_another_user_keeps_no_values(w: World) {
    for steps in [
        json!([["login", "bob"]]),
        json!([["insert", "k", 5], ["login", "bob"]]),
        json!([["insert", "k", 5], ["save"], ["login", "bob"]]),
        json!([["rotate"], ["login", "bob"]]),
        json!([["login", "ana"], ["insert", "k", 5], ["login", "bob"]]),
    ] {
        let client = w.member("ana").await;
        let old = token(&client);
        client.perform(steps.clone()).await;
        assert_ne!(token(&client), old);
        assert!(!w.opens(&old).await, "{steps}");
        let seen = w.tab(&client).perform(json!([["user"], ["get", "k"], ["get", "l"]])).await;
        assert_eq!(json!(seen), json!(["bob", null, null]), "{steps}");
    }
    assert_eq!(w.count().await, 5);
}

async fn a_login_over_an_anonymous_session_keeps_its_values(w: World) {
    let client = w.visitor().await;
    client.perform(json!([["insert", "l", 2], ["login", "ana"], ["insert", "m", 3]])).await;
    let seen = w.tab(&client).perform(json!([["user"], ["get", "k"], ["get", "l"], ["get", "m"]])).await;
    assert_eq!(json!(seen), json!(["ana", 1, 2, 3]));
    assert_eq!(w.count().await, 1);
}

async fn a_login_of_the_same_user_keeps_its_values(w: World) {
    let client = w.member("ana").await;
    let old = token(&client);
    client.one(json!(["login", "ana"])).await;
    assert!(!w.opens(&old).await);
    assert_eq!(w.tab(&client).one(json!(["get", "k"])).await, 1);
    assert_eq!(w.count().await, 1);
}

async fn an_insert_after_a_destroy_is_in_another_session(w: World) {
    for end in ["destroy", "logout"] {
        let client = w.member("ana").await;
        let old = token(&client);
        let seen = client
            .perform(json!([["insert", "lost", 1], [end], ["get", "k"], ["user"], ["id"], ["insert", "notice", "bye"]]))
            .await;
        assert_eq!(json!(seen), json!([null, null, null, null, null, null]));
        assert_ne!(token(&client), old);
        assert!(!w.opens(&old).await);
        let seen = w.tab(&client).perform(json!([["user"], ["get", "k"], ["get", "lost"], ["get", "notice"]])).await;
        assert_eq!(json!(seen), json!([null, null, null, "bye"]));
    }
    assert_eq!(w.count().await, 2);
}

async fn logout_of_an_ended_session_is_not_an_error(w: World) {
    let client = w.member("ana").await;
    let (first, second) = (w.tab(&client), w.tab(&client));
    client.one(json!(["logout"])).await;
    for tab in [first, second] {
        for _ in 0..2 {
            let reply = tab.post("/do", &json!([["logout"]])).await;
            assert_eq!(reply.status, StatusCode::OK);
            assert!(reply.set_cookies().iter().all(|cookie| cookie.starts_with("session=;")), "no token: {reply:?}");
            assert_eq!(w.count().await, 0);
        }
    }
}

async fn a_tab_whose_session_was_logged_out_elsewhere_is_logged_out(w: World) {
    let client = w.member("ana").await;
    let (old, tab) = (token(&client), w.tab(&client));
    assert_eq!(tab.one(json!(["user"])).await, "ana");
    client.one(json!(["logout"])).await;
    let seen = tab.perform(json!([["user"], ["get", "k"], ["is_new"]])).await;
    assert_eq!(json!(seen), json!([null, null, true]));
    tab.one(json!(["insert", "k", 5])).await;
    assert_ne!(token(&tab), old);
    let seen = tab.perform(json!([["user"], ["get", "k"], ["get", "l"]])).await;
    assert_eq!(json!(seen), json!([null, 5, null]));
    assert!(!w.opens(&old).await);
}

async fn login_and_logout_in_one_request_leave_nothing(w: World) {
    for steps in [
        json!([["login", "ana"], ["insert", "k", 1], ["logout"]]),
        json!([["login", "ana"], ["save"], ["logout"]]),
        json!([["login", "ana"], ["save"], ["logout"], ["save"]]),
    ] {
        for begin in [World::nobody, World::anonymous] {
            let client = begin(&w).await;
            client.perform(steps.clone()).await;
            assert_eq!(client.cookie(COOKIE), None, "{steps}");
            assert_eq!(w.count().await, 0, "{steps}");
        }
    }
}

async fn a_rotation_after_a_failed_save_is_applied(w: World) {
    for how in GOES_WRONG {
        let client = w.member("ana").await;
        let old = token(&client);
        save_fails(&client, how, &["insert x"], &["rotate"]).await;
        assert!(!w.opens(&old).await, "{how:?}: the old token still works");
        let seen = w.tab(&client).perform(json!([["user"], ["get", "k"], ["get", "x"]])).await;
        assert_eq!(json!(seen), json!(["ana", 1, true]), "{how:?}");
        client.one(json!(["logout"])).await;
        assert_eq!(w.count().await, 0, "{how:?}");
    }
}

async fn a_login_after_a_failed_save_has_a_new_token(w: World) {
    for how in GOES_WRONG {
        let thief = w.visitor().await;
        let victim = w.tab(&thief);
        let victim = victim.at(&w.app().url());
        save_fails(&victim, how, &["insert x"], &["login ana"]).await;
        assert!(!w.opens(&token(&thief)).await, "{how:?}: the planted token is logged in");
        assert_eq!(w.tab(&victim).one(json!(["user"])).await, "ana", "{how:?}");
        victim.one(json!(["logout"])).await;
        assert_eq!(w.count().await, 0, "{how:?}");
    }
}

async fn a_logout_after_a_failed_save_ends_the_session(w: World) {
    for how in GOES_WRONG {
        let client = w.member("ana").await;
        let old = token(&client);
        save_fails(&client, how, &["insert x"], &["logout"]).await;
        assert_eq!(client.cookie(COOKIE), None, "{how:?}");
        assert!(!w.opens(&old).await, "{how:?}");
        assert_eq!(w.count().await, 0, "{how:?}");
    }
}

async fn a_logout_after_a_login_with_a_failed_save_leaves_nothing(w: World) {
    for how in GOES_WRONG {
        for begin in [World::nobody, World::anonymous] {
            let client = begin(&w).await;
            save_fails(&client, how, &["login ana"], &["logout"]).await;
            assert_eq!(client.cookie(COOKIE), None, "{how:?}: logged in after all");
            assert_eq!(w.count().await, 0, "{how:?}");
        }
    }
}

async fn a_logout_after_a_rotation_with_a_failed_save_leaves_nothing(w: World) {
    for how in GOES_WRONG {
        let client = w.member("ana").await;
        save_fails(&client, how, &["rotate"], &["logout"]).await;
        assert_eq!(client.cookie(COOKIE), None, "{how:?}");
        assert_eq!(w.count().await, 0, "{how:?}");
    }
}

async fn a_login_after_a_failed_save_gives_no_values_to_another_user(w: World) {
    for how in GOES_WRONG {
        for begin in [World::nobody, World::anonymous, World::logged_in] {
            let client = begin(&w).await;
            save_fails(&client, how, &["login ana", "insert x"], &["login bob"]).await;
            let seen = w.tab(&client).perform(json!([["user"], ["get", "x"], ["get", "k"]])).await;
            assert_eq!(json!(seen), json!(["bob", null, null]), "{how:?}");
            client.one(json!(["logout"])).await;
            assert_eq!(w.count().await, 0, "{how:?}");
        }
    }
}

async fn an_insert_after_a_logout_with_a_failed_save_is_in_another_session(w: World) {
    for how in GOES_WRONG {
        let client = w.member("ana").await;
        let old = token(&client);
        save_fails(&client, how, &["logout"], &["insert x"]).await;
        assert!(!w.opens(&old).await, "{how:?}");
        let seen = w.tab(&client).perform(json!([["user"], ["get", "x"], ["get", "k"]])).await;
        assert_eq!(json!(seen), json!([null, true, null]), "{how:?}");
        client.one(json!(["logout"])).await;
        assert_eq!(w.count().await, 0, "{how:?}");
    }
}

async fn an_insert_after_a_failed_save_is_saved(w: World) {
    for how in GOES_WRONG {
        for before in ["insert x", "rotate", "login ana"] {
            let client = w.member("ana").await;
            save_fails(&client, how, &[before], &["insert y"]).await;
            let seen = w.tab(&client).perform(json!([["user"], ["get", "k"], ["get", "y"]])).await;
            assert_eq!(json!(seen), json!(["ana", 1, true]), "{how:?} {before}");
            client.one(json!(["logout"])).await;
            assert_eq!(w.count().await, 0, "{how:?} {before}");
        }
    }
}
