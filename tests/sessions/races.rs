//! Concurrent requests of one client at critical moments: between the writes of a login, after a lost reply,
//! during a save.

use std::{
    convert::Infallible,
    future::Future,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::support::spy::Spy;
use http::{Request, Response, StatusCode, header};
use tokio::sync::Notify;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::{
    Consumed, EndReason, EventKind, Key, Lifetime, Limits, ManualClock, NewSession, Session, SessionCookie,
    SessionError, SessionInfo, SessionLayer, Token, WhenFull,
};

const VOUCHER: Key<u64> = Key::new("voucher");
const MINUTE: Duration = Duration::from_secs(60);

struct World {
    spy: Spy,
    clock: ManualClock,
    layer: SessionLayer,
}

impl World {
    fn new() -> Self {
        Self::with(|layer| layer)
    }

    fn with(settings: impl FnOnce(SessionLayer) -> SessionLayer) -> Self {
        let clock = ManualClock::new();
        let spy = Spy::with_clock(clock.clone());
        let layer = SessionLayer::new(spy.clone()).cookie(SessionCookie::development()).clock(clock.clone());
        Self { spy, clock, layer: settings(layer) }
    }

    /// The token of an anonymous session with a voucher.
    async fn visitor(&self) -> String {
        self.create(NewSession::anonymous().insert(VOUCHER, &50).unwrap()).await
    }

    async fn create(&self, new: NewSession) -> String {
        self.layer.sessions().create(new).await.unwrap().expose().to_owned()
    }

    /// Sends a request with `token`, served by `handler`.
    async fn request<F>(&self, token: &str, handler: impl Fn(Session) -> F + Send) -> Reply
    where
        F: Future<Output = Result<(), SessionError>> + Send,
    {
        let handler = &handler;
        let service = self.layer.layer(service_fn(async move |request: Request<()>| {
            let session = request.extensions().get::<Session>().unwrap().clone();
            session.load().await.expect("the policy lets all through");
            let mut response = Response::new(());
            if handler(session).await.is_err() {
                *response.status_mut() = StatusCode::CONFLICT;
            }
            Ok::<_, Infallible>(response)
        }));
        let request = Request::builder().header(header::COOKIE, format!("session={token}")).body(()).unwrap();
        let Ok(response) = service.oneshot(request).await;
        let set_cookies = response.headers().get_all(header::SET_COOKIE).iter();
        let told =
            set_cookies.map(|told| told.to_str().unwrap().split(['=', ';']).nth(1).unwrap().to_owned()).next_back();
        Reply { status: response.status(), told }
    }

    /// The same, with `concurrent` just before the store applies `operation`.
    async fn request_while<F>(
        &self,
        operation: &'static str,
        token: &str,
        handler: impl Fn(Session) -> F + Send,
        concurrent: impl Future<Output = ()>,
    ) -> Reply
    where
        F: Future<Output = Result<(), SessionError>> + Send,
    {
        let hold = self.spy.hold_next(operation);
        let concurrent = async {
            hold.reached().await;
            concurrent.await;
            hold.release();
        };
        tokio::join!(self.request(token, handler), concurrent).0
    }

    async fn open(&self, token: &str) -> Option<SessionInfo> {
        self.layer.sessions().open(&Token::parse(token).unwrap()).await.unwrap()
    }

    /// The result of a concurrent consume.
    async fn consume(&self, token: &str) -> Consumed {
        self.layer.sessions().consume(&Token::parse(token).unwrap()).await.unwrap()
    }

    async fn voucher(&self, token: &str) -> Option<u64> {
        self.open(token).await.expect("a live session").value(VOUCHER).unwrap()
    }
}

#[derive(Debug)]
struct Reply {
    status: StatusCode,
    told: Option<String>,
}

impl Reply {
    /// The token in the response.
    #[track_caller]
    fn token(&self) -> &str {
        assert_eq!(self.status, StatusCode::OK);
        self.told.as_deref().filter(|token| !token.is_empty()).expect("a token")
    }
}

async fn log_in(session: Session) -> Result<(), SessionError> {
    session.insert("own", &true)?;
    session.login("ana")
}

#[tokio::test]
async fn a_login_takes_nothing_from_a_session_consumed_concurrently() {
    let world = World::new();
    let visitor = world.visitor().await;
    let consume = async {
        let used = world.consume(&visitor).await;
        let Consumed::Now(used) = used else { panic!("{used:?}") };
        assert_eq!(used.value(VOUCHER).unwrap(), Some(50));
    };
    let reply = world.request_while("replace", &visitor, log_in, consume).await;
    let session = world.open(reply.token()).await.unwrap();
    assert_eq!(session.user(), Some("ana"));
    assert_eq!(session.value(VOUCHER).unwrap(), None, "it is used once, and by one");
    assert_eq!(session.value::<bool>("own").unwrap(), Some(true), "what the request did itself is its own");
    assert_eq!(world.layer.stats().ended_concurrently, 1);
    assert_eq!(world.spy.len(), 1);
}

#[tokio::test]
async fn a_failed_login_does_not_show_a_session_consumed_concurrently() {
    let world = World::new();
    let visitor = world.visitor().await;
    let consume = async {
        let used = world.consume(&visitor).await;
        assert!(matches!(used, Consumed::Now(_)));
        world.spy.fail_next("update");
    };
    let handler = async |session: Session| {
        log_in(session.clone()).await?;
        session.save().await.unwrap_err();
        assert_eq!(session.get(VOUCHER)?, None);
        assert_eq!(session.get::<bool>("own")?, Some(true));
        Ok(())
    };
    let reply = world.request_while("replace", &visitor, handler, consume).await;
    assert_eq!(world.voucher(reply.token()).await, None);
}

#[tokio::test]
async fn one_of_two_concurrent_logins_replaces_the_session() {
    let world = World::new();
    let visitor = world.visitor().await;
    let mut first = None;
    let other = async { first = Some(world.request(&visitor, log_in).await) };
    let second = world.request_while("replace", &visitor, log_in, other).await;
    let first = first.unwrap();
    assert_eq!(world.voucher(first.token()).await, Some(50));
    assert_eq!(world.voucher(second.token()).await, None);
    assert_eq!(world.open(second.token()).await.unwrap().user(), Some("ana"));
    assert!(world.open(&visitor).await.is_none());
}

#[tokio::test]
async fn a_pending_login_that_is_evicted_keeps_the_old_session() {
    let world = World::with(|layer| layer.limits(Limits::per_user(1, WhenFull::EvictLeastRecentlyUsed)));
    let (visitor, elsewhere) = (world.visitor().await, world.visitor().await);
    let mut before = None;
    let other = async {
        before = Some(world.request(&elsewhere, log_in).await);
        world.clock.advance(Duration::from_secs(1));
    };
    let reply = world.request_while("replace", &visitor, log_in, other).await;
    assert_eq!(world.voucher(reply.token()).await, Some(50));
    assert!(world.open(before.unwrap().token()).await.is_none(), "one session a user: the later");
    assert!(world.open(&visitor).await.is_none());
    assert_eq!(world.spy.len(), 1);
}

#[tokio::test]
async fn a_pending_login_that_is_revoked_is_created_again() {
    let world = World::new();
    let visitor = world.visitor().await;
    let revoke = async {
        let write = async |session: Session| session.insert("concurrent", &1);
        world.request(&visitor, write).await;
        assert_eq!(world.layer.sessions().revoke_user("ana").await.unwrap(), 1);
    };
    let reply = world.request_while("replace", &visitor, log_in, revoke).await;
    let session = world.open(reply.token()).await.unwrap();
    assert_eq!(session.value(VOUCHER).unwrap(), Some(50));
    assert_eq!(session.value::<u64>("concurrent").unwrap(), Some(1));
    assert!(world.open(&visitor).await.is_none(), "it was carried on");
    assert_eq!(world.spy.len(), 1);
}

#[tokio::test]
async fn a_pending_login_that_expired_is_created_again() {
    for answered in [false, true] {
        let world = World::new();
        let visitor = world.visitor().await;
        let reply = world
            .request(&visitor, async |session: Session| {
                match answered {
                    true => world.spy.fail_next("update"), // the old one has ended, and the client did not get the new one
                    false => world.spy.lose_next_answer("replace"),
                }
                log_in(session.clone()).await?;
                session.save().await.unwrap_err();
                world.clock.advance(MINUTE);
                session.insert("later", &2)
            })
            .await;
        let session = world.open(reply.token()).await.unwrap();
        assert_eq!(session.user(), Some("ana"));
        assert_eq!(session.value(VOUCHER).unwrap(), Some(50), "answered: {answered}");
        assert_eq!(session.value::<u64>("later").unwrap(), Some(2));
        assert!(world.open(&visitor).await.is_none());
        assert_eq!(world.spy.len(), 1);
    }
}

#[tokio::test]
async fn a_failed_login_and_a_failed_service_leave_the_old_session() {
    let world = World::new();
    let visitor = world.visitor().await;
    let spy = &world.spy;
    let service = world.layer.layer(service_fn(move |request: Request<()>| async move {
        let session = request.extensions().get::<Session>().unwrap().clone();
        session.load().await.unwrap();
        session.login("ana").unwrap();
        spy.fail_next("replace");
        session.save().await.unwrap_err();
        Err::<Response<()>, _>("no answer")
    }));
    let request = Request::builder().header(header::COOKIE, format!("session={visitor}")).body(()).unwrap();
    assert_eq!(service.oneshot(request).await.unwrap_err(), "no answer");
    assert_eq!(world.voucher(&visitor).await, Some(50));
    assert_eq!(world.spy.len(), 1, "and no other");
}

#[tokio::test]
async fn after_a_failed_login_the_client_gets_its_actual_token() {
    let world = World::new();
    let reply = world
        .request("", async |session: Session| {
            session.insert(VOUCHER, &7)?;
            session.save().await?;
            world.spy.fail_next("replace");
            session.login("ana")
        })
        .await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let session = world.open(&reply.told.unwrap()).await.expect("the session that is alive");
    assert_eq!(session.value(VOUCHER).unwrap(), Some(7));
    assert_eq!(session.user(), None);
}

#[tokio::test]
async fn a_save_reports_an_expired_session() {
    let lifetime = || Lifetime::new(MINUTE, MINUTE).unwrap();
    for saves in [false, true] {
        let world = World::new();
        let token = world.create(NewSession::of("ana").lifetime(lifetime())).await;
        let reply = world
            .request(&token, async |session: Session| {
                session.insert("paid", &true)?;
                world.clock.advance(MINUTE);
                if saves {
                    assert!(matches!(session.save().await, Err(SessionError::Ended)));
                    assert_eq!(session.get::<bool>("paid")?, None);
                    assert!(matches!(session.insert("paid", &true), Err(SessionError::Ended)));
                }
                Ok(())
            })
            .await;
        assert_eq!(reply.told, None);
        assert_eq!(world.layer.stats().ended_concurrently, 1);
        assert_eq!(world.layer.stats().unsaved, 0);
    }
}

type Act = fn(&Session) -> Result<(), SessionError>;

#[tokio::test]
async fn a_session_extended_by_another_request_is_live() {
    let world = World::new();
    let token = world.create(NewSession::of("ana").lifetime(Lifetime::new(MINUTE, MINUTE).unwrap())).await;
    let reply = world
        .request(&token, async |session: Session| {
            world.clock.advance(MINUTE / 2);
            let longer = Lifetime::new(MINUTE, 2 * MINUTE).unwrap();
            world.request(&token, async |other: Session| other.set_lifetime(longer)).await;
            world.clock.advance(MINUTE / 2);
            session.insert("late", &1)
        })
        .await;
    assert_eq!(reply.told, None);
    let session = world.open(&token).await.expect("half a minute is left");
    assert_eq!(session.value::<u64>("late").unwrap(), Some(1));
}

#[tokio::test]
async fn a_lifetime_in_the_past_ends_the_session() {
    let world = World::new();
    let token = world.create(NewSession::of("ana")).await;
    world.clock.advance(2 * MINUTE);
    let reply = world
        .request(&token, async |session: Session| {
            session.set_lifetime(Lifetime::new(MINUTE, MINUTE).unwrap())?;
            assert!(matches!(session.save().await, Err(SessionError::Ended)));
            Ok(())
        })
        .await;
    assert_eq!(reply.told.as_deref(), Some(""), "its cookie is removed");
    assert!(world.open(&token).await.is_none());
}

/// It may be a thief with a copy of the rotated token.
#[tokio::test]
async fn a_superseded_token_does_not_receive_the_new_one() {
    let slower: [Act; 3] = [
        |session| session.insert("k", &1),
        |session| session.set_lifetime(Lifetime::aal1()), // the cookie becomes persistent
        |_| Ok(()),                                       // its token is due for rotation
    ];
    for (place, act) in slower.into_iter().enumerate() {
        let world = World::with(|layer| layer.rotate_every(10 * MINUTE));
        let token = world.create(NewSession::of("ana")).await;
        world.clock.advance(11 * MINUTE);
        let mut owner = None;
        let reply = world
            .request_while(
                "update",
                &token,
                async |session: Session| {
                    act(&session)?;
                    session.save().await?;
                    assert!(session.token()?.is_none(), "{place}");
                    Ok(())
                },
                async {
                    owner = Some(world.request(&token, async |session: Session| session.rotate()).await);
                },
            )
            .await;
        assert_eq!(reply.status, StatusCode::OK, "{place}");
        assert_eq!(reply.told, None, "{place}");
        assert!(world.open(owner.unwrap().token()).await.is_some(), "{place}: the token of the owner is still current");
        assert!(world.open(&token).await.is_none());
    }
}

#[tokio::test]
async fn a_token_superseded_twice_does_not_receive_the_new_one() {
    let world = World::with(|layer| layer.rotate_every(10 * MINUTE));
    let token = world.create(NewSession::of("ana")).await;
    let owner = OnceLock::new();
    let reply = world
        .request(&token, async |session: Session| {
            let rotated = world.request(&token, async |owner: Session| owner.rotate()).await;
            world.request(rotated.token(), async |_| Ok(())).await;
            world.clock.advance(11 * MINUTE);
            owner.set(world.request(rotated.token(), async |_| Ok(())).await).unwrap();
            session.set_lifetime(Lifetime::aal1())
        })
        .await;
    assert_eq!(reply.told, None);
    assert!(world.open(owner.get().unwrap().token()).await.is_some());
}

#[tokio::test]
async fn a_failed_login_reveals_no_token() {
    // Its token was about to be sent when it was rotated, and then the login failed.
    let world = World::with(|layer| layer.rotate_every(10 * MINUTE));
    let visitor = world.visitor().await;
    world.clock.advance(11 * MINUTE);
    let renewed = world.request(&visitor, async |_| Ok(())).await;
    let (mut owner, spy) = (None, world.spy.clone());
    let reply = world
        .request_while("replace", &visitor, log_in, async {
            owner = Some(world.request(renewed.token(), async |owner: Session| owner.rotate()).await);
            spy.fail_next("update"); // which keeps the writes of the owner
        })
        .await;
    assert_eq!((reply.status, reply.told), (StatusCode::SERVICE_UNAVAILABLE, None));
    assert!(world.open(owner.unwrap().token()).await.is_some());

    // A login as another user over the limit does not change that.
    let world = World::with(|layer| layer.limits(Limits::per_user(1, WhenFull::Reject)));
    world.create(NewSession::of("ben")).await;
    let token = world.create(NewSession::of("ana")).await;
    let mut owner = None;
    let reply = world
        .request_while(
            "update",
            &token,
            async |session: Session| {
                session.insert("k", &1)?;
                session.save().await?;
                session.login("ben")
            },
            async { owner = Some(world.request(&token, async |owner: Session| owner.rotate()).await) },
        )
        .await;
    assert_eq!((reply.status, reply.told), (StatusCode::TOO_MANY_REQUESTS, None));
    assert!(world.open(owner.unwrap().token()).await.is_some());
}

#[tokio::test]
async fn a_failed_renewal_is_not_an_error() {
    let world = World::with(|layer| layer.rotate_every(10 * MINUTE));
    let visitor = world.visitor().await;
    world.clock.advance(11 * MINUTE);
    world.spy.fail("update");
    let reply = world.request(&visitor, async |session: Session| session.get(VOUCHER).map(drop)).await;
    assert_eq!((reply.status, reply.told), (StatusCode::OK, None));
    let reply = world.request(&visitor, async |session: Session| session.insert("k", &1)).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "a change is lost");
    world.spy.recover();
    assert_eq!(world.voucher(world.request(&visitor, async |_| Ok(())).await.token()).await, Some(50));
}

#[tokio::test]
async fn a_login_that_cannot_be_activated_still_sets_the_cookie() {
    let world = World::new();
    let visitor = world.visitor().await;
    world.spy.fail("update");
    let reply = world.request(&visitor, log_in).await;
    world.spy.recover();
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(world.open(&visitor).await.is_none());
    let told = reply.told.expect("the only token that opens it");
    assert_eq!(world.voucher(&told).await, Some(50));
    // The next request completes it.
    world.request(&told, async |session: Session| session.get(VOUCHER).map(drop)).await;
    world.clock.advance(2 * MINUTE);
    assert_eq!(world.open(&told).await.unwrap().user(), Some("ana"));
}

#[tokio::test]
async fn a_session_consumed_after_login_is_consumed_once() {
    for begun in [false, true] {
        let world = World::new();
        let visitor = world.visitor().await;
        let used = AtomicU32::new(0);
        world
            .request(&visitor, async |session: Session| {
                session.login("ana")?;
                world.spy.fail_next(if begun { "update" } else { "replace" });
                session.save().await.unwrap_err();
                let other = world.consume(&visitor).await;
                let both = [matches!(other, Consumed::Now(_)), session.consume().await?];
                used.store(both.map(u32::from).iter().sum(), Ordering::SeqCst);
                Ok(())
            })
            .await;
        assert_eq!(used.load(Ordering::SeqCst), 1);
        assert_eq!(world.layer.sessions().list("ana").await.unwrap().len(), 0);
    }
}

#[tokio::test]
async fn a_late_consumer_sets_no_cookie() {
    let world = World::new();
    let visitor = world.visitor().await;
    let login = OnceLock::new();
    let reply = world
        .request(&visitor, async |session: Session| {
            login.set(world.request(&visitor, log_in).await).unwrap();
            assert!(!session.consume().await?);
            Ok(())
        })
        .await;
    assert_eq!((reply.status, reply.told), (StatusCode::OK, None));
    assert_eq!(world.voucher(login.get().unwrap().token()).await, Some(50));
}

#[tokio::test]
async fn an_end_with_a_lost_reply_removes_the_cookie_once() {
    let world = World::new();
    let token = world.create(NewSession::of("ana")).await;
    let mut events = world.layer.sessions().events().await.unwrap();
    world.spy.lose_next_answer("end");
    world
        .request(&token, async |session: Session| {
            session.logout()?;
            session.save().await.unwrap_err();
            Ok(())
        })
        .await;
    let event = events.next().await.unwrap();
    assert_eq!((event.user(), event.kind()), (Some("ana"), EventKind::Ended(EndReason::LoggedOut)));
    // A thief ends a session once, however often the token is reused.
    let token = world.create(NewSession::of("ana")).await;
    let rotated = world.request(&token, async |session: Session| session.rotate()).await;
    world.request(rotated.token(), async |_| Ok(())).await;
    world.clock.advance(MINUTE);
    for _ in 0..2 {
        world.request(&token, async |_| Ok(())).await;
    }
    let revoked = Token::parse(world.create(NewSession::of("ben")).await).unwrap();
    assert!(world.layer.sessions().revoke(&revoked.id()).await.unwrap());
    let mut happened = Vec::new();
    while happened.last() != Some(&(Some("ben".to_owned()), EventKind::Ended(EndReason::Revoked))) {
        let event = events.next().await.unwrap();
        happened.push((event.user().map(str::to_owned), event.kind()));
    }
    let ends = |reason| happened.iter().filter(|(_, happened)| *happened == EventKind::Ended(reason)).count();
    assert_eq!((ends(EndReason::LoggedOut), ends(EndReason::TokenReused)), (0, 1));
}

/// A change that was meant for a new token does not come with the old one.
#[tokio::test]
async fn without_a_response_a_rotation_saves_nothing() {
    let world = World::new();
    let token = world.create(NewSession::of("ana")).await;
    let service = world.layer.layer(service_fn(async |request: Request<()>| {
        let session = request.extensions().get::<Session>().unwrap().clone();
        session.load().await.unwrap();
        session.rotate().unwrap();
        session.insert("role", "admin").unwrap();
        Err::<Response<()>, _>("no answer")
    }));
    let request = Request::builder().header(header::COOKIE, format!("session={token}")).body(()).unwrap();
    assert_eq!(service.oneshot(request).await.unwrap_err(), "no answer");
    assert_eq!(world.open(&token).await.unwrap().value::<String>("role").unwrap(), None);
}

/// One of two tabs may never get its response.
#[tokio::test]
async fn concurrent_rotations_get_one_token() {
    for saves_before in [false, true] {
        let world = World::new();
        let token = world.create(NewSession::of("ana")).await;
        let mut other = None;
        let reply = world
            .request_while(
                "update",
                &token,
                async |session: Session| {
                    session.insert("k", &1)?;
                    if saves_before {
                        session.save().await?;
                    }
                    session.rotate()
                },
                async {
                    other = Some(world.request(&token, async |session: Session| session.rotate()).await);
                },
            )
            .await;
        assert_eq!(world.open(reply.token()).await.unwrap().value::<u64>("k").unwrap(), Some(1));
        assert_eq!(other.unwrap().token(), reply.token());
        assert!(world.open(&token).await.is_none());
    }
}

/// From then on, the previous token is a copy.
#[tokio::test]
async fn the_first_use_of_a_token_is_written_once() {
    let world = World::new();
    let token = world.create(NewSession::of("ana")).await;
    let rotated = world.request(&token, async |session: Session| session.rotate()).await;
    let updates = || world.spy.calls().iter().filter(|call| **call == "update").count();
    for expected in [1, 1, 0] {
        assert_eq!(updates(), expected);
        world.request(rotated.token(), async |_| Ok(())).await;
    }
    // Two at once: the slower one finds that there is nothing left to write.
    let rotated = world.request(rotated.token(), async |session: Session| session.rotate()).await;
    let reply = world
        .request_while("update", rotated.token(), async |_| Ok(()), async {
            world.request(rotated.token(), async |_| Ok(())).await;
        })
        .await;
    assert_eq!((reply.status, reply.told), (StatusCode::OK, None));
    assert_eq!(updates(), 1 + 2);
}

#[tokio::test]
async fn a_login_replaces_a_session_that_another_request_rotates_meanwhile() {
    let world = World::new();
    let token = world.create(NewSession::of("ana")).await;
    let mut other = None;
    let rotate = async |session: Session| {
        session.insert("k", &1)?;
        session.rotate()
    };
    let login = async |session: Session| session.login("ana");
    let reply = world
        .request_while("replace", &token, login, async {
            other = Some(world.request(&token, rotate).await);
        })
        .await;
    assert_eq!(world.open(reply.token()).await.unwrap().value::<u64>("k").unwrap(), Some(1));
    for dead in [&token, other.unwrap().token()] {
        assert!(world.open(dead).await.is_none());
    }
}

#[tokio::test]
async fn after_a_lost_reply_the_client_gets_the_token_of_its_rotation() {
    let world = World::new();
    let token = world.create(NewSession::of("ana")).await;
    let (is_served, has_rotated) = (Notify::new(), Notify::new());
    let reply = world
        .request(&token, async |session: Session| {
            let other = world.request(&token, async |other: Session| {
                is_served.notify_one();
                has_rotated.notified().await;
                other.insert("k", &1)
            });
            let rotate = async {
                is_served.notified().await;
                world.spy.lose_next_answer("update");
                session.rotate()?;
                session.save().await.unwrap_err();
                has_rotated.notify_one();
                Ok(())
            };
            let (other, rotated) = tokio::join!(other, rotate);
            assert_eq!((other.status, other.told), (StatusCode::OK, None));
            rotated
        })
        .await;
    assert_eq!(world.open(reply.token()).await.unwrap().value::<u64>("k").unwrap(), Some(1));
    assert!(world.open(&token).await.is_none());
}

#[tokio::test]
async fn saved_changes_are_not_saved_again() {
    let world = World::new();
    let token = world.create(NewSession::of("ana").insert("a", &1).unwrap()).await;
    let hold = world.spy.hold_next("update");
    world
        .request(&token, async |session: Session| {
            session.clear()?;
            session.insert("b", &1)?;
            let change = async {
                hold.reached().await;
                session.insert("later", &1)?;
                let next = world.spy.hold_next("update");
                hold.release();
                next.reached().await;
                // Another request writes, and the first save must not overwrite it.
                world
                    .request(&token, async |other: Session| {
                        other.insert("b", &2)?;
                        other.insert("c", &3)
                    })
                    .await;
                next.release();
                Ok::<_, SessionError>(())
            };
            let (saved, changed) = tokio::join!(session.save(), change);
            saved.and(changed)?;
            session.insert("last", &1)
        })
        .await;
    let session = world.open(&token).await.unwrap();
    let values = ["a", "b", "c", "later", "last"].map(|key| session.value::<u64>(key).unwrap());
    assert_eq!(values, [None, Some(2), Some(3), Some(1), Some(1)]);
    assert_eq!(world.layer.stats().overwrites, 0);
}

#[tokio::test]
async fn a_previous_token_consumes_nothing() {
    let world = World::new();
    let token = world.create(NewSession::of("ana")).await;
    let rotated = world.request(&token, async |session: Session| session.rotate()).await;
    let old = world.consume(&token).await;
    assert!(matches!(old, Consumed::Unknown), "{old:?}");
    let new = world.consume(rotated.token()).await;
    assert!(matches!(new, Consumed::Now(_)), "{new:?}");
}

#[test]
fn logs_show_no_value() {
    let new = NewSession::of("ana").insert("code", "s3cret").unwrap();
    assert!(!format!("{new:?}").contains("s3cret"));
}
