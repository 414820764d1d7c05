//! Client metadata: trusted proxies, parsed headers, and what is stored.

use std::net::{IpAddr, SocketAddr};

use http::{Extensions, HeaderMap, HeaderName, HeaderValue, header};
use proptest::prelude::*;
use serde_json::json;
use tower_keep::{ClientInfo, ForwardedHeader, Metadata, PeerAddr};

fn from(peer: &str) -> Extensions {
    let mut extensions = Extensions::new();
    extensions.insert(PeerAddr(SocketAddr::new(peer.parse().unwrap(), 4711)));
    extensions
}

fn lines(name: &'static str, values: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn info() -> ClientInfo {
    ClientInfo::new().trust_proxies(["10.0.0.0/8", "192.0.2.7", "fd00::/8"]).unwrap()
}

#[track_caller]
fn assert_client(info: &ClientInfo, peer: &str, name: &'static str, values: &[&str], expected: &str) {
    let client = info.client_ip(&lines(name, values), &from(peer)).map(|ip| ip.to_string());
    assert_eq!(client.as_deref(), Some(expected), "{peer} {values:?}");
}

#[test]
fn the_client_is_the_last_x_forwarded_for_address_that_is_not_a_proxy() {
    let cases: &[(&str, &[&str], &str)] = &[
        ("198.51.100.9", &["203.0.113.7"], "198.51.100.9"), // the peer is not a trusted proxy
        ("10.0.0.1", &[], "10.0.0.1"),
        ("10.0.0.1", &["203.0.113.7"], "203.0.113.7"),
        ("192.0.2.7", &["203.0.113.7"], "203.0.113.7"),
        ("192.0.2.8", &["203.0.113.7"], "192.0.2.8"),
        ("10.0.0.1", &["6.6.6.6, 203.0.113.7"], "203.0.113.7"), // invented by the client
        ("10.0.0.1", &["6.6.6.6", "203.0.113.7"], "203.0.113.7"), // in another header
        ("10.0.0.1", &["6.6.6.6, 203.0.113.7, 10.0.0.2", "10.0.0.3"], "203.0.113.7"),
        ("10.0.0.1", &["203.0.113.7,10.0.0.2 ,  10.0.0.3"], "203.0.113.7"),
        ("10.0.0.1", &["10.0.0.2, 10.0.0.3"], "10.0.0.2"), // only proxies
        ("10.0.0.1", &["203.0.113.7, unknown, 10.0.0.3"], "10.0.0.3"), // entries before it are not trusted
        ("10.0.0.1", &["203.0.113.7, "], "10.0.0.1"),
        ("10.0.0.1", &["garbage"], "10.0.0.1"),
        ("10.0.0.1", &["203.0.113.7:80"], "203.0.113.7"),
        ("10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", &["[2001:db8::1]:80"], "2001:db8::1"),
        ("fd00::1", &["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", &["::ffff:203.0.113.7"], "203.0.113.7"), // an IPv4-mapped address
        ("10.0.0.1", &["203.0.113.7", "\u{e9}"], "10.0.0.1"),
        ("10.0.0.1", &["203.0.113.256"], "10.0.0.1"),
        ("10.0.0.1", &["0x0a.1.1.1"], "10.0.0.1"),
        ("10.0.0.1", &["\u{e9}, 203.0.113.7"], "203.0.113.7"), // invalid entries further left do not matter
        ("10.0.0.1", &["\", 203.0.113.7"], "203.0.113.7"),
    ];
    for (peer, values, expected) in cases {
        assert_client(&info(), peer, "x-forwarded-for", values, expected);
        assert_client(&ClientInfo::new(), "10.0.0.1", "x-forwarded-for", values, "10.0.0.1");
    }
}

#[test]
fn the_client_is_found_in_forwarded_too() {
    let info = info().forwarded_header(ForwardedHeader::Forwarded);
    let cases: &[(&[&str], &str)] = &[
        (&["for=203.0.113.7"], "203.0.113.7"),
        (&["For=\"203.0.113.7:80\";proto=https;by=10.0.0.1"], "203.0.113.7"),
        (&["proto=http ; FOR=\"[2001:db8::1]:80\""], "2001:db8::1"),
        (&["for=6.6.6.6, for=203.0.113.7;host=a, for=10.0.0.2"], "203.0.113.7"),
        (&["for=6.6.6.6", "for=203.0.113.7"], "203.0.113.7"),
        (&["for=203.0.113.7, for=_hidden"], "10.0.0.1"),
        (&["for=203.0.113.7, for=unknown, for=10.0.0.2"], "10.0.0.2"),
        (&["by=203.0.113.7"], "10.0.0.1"),
        (&["for"], "10.0.0.1"),
        (&["for="], "10.0.0.1"),
        (&["for=\""], "10.0.0.1"),
        (&["for=\"203.0.113.7:_port\""], "203.0.113.7"),
        (&["for=\"[2001:db8::1]:_port\""], "2001:db8::1"),
        (&["for=203.0.113.7;for=6.6.6.6"], "10.0.0.1"), // ambiguous
        (&["\u{e9}, for=203.0.113.7"], "203.0.113.7"),
        // Quoted strings may come from the client: `host` is its header.
        (&[r#"for=203.0.113.7;host="a,for=6.6.6.6""#], "203.0.113.7"),
        (&[r#"for=203.0.113.7;host="a,for=6.6.6.6;b""#], "203.0.113.7"),
        (&[r#"for=203.0.113.7;host="a;for=6.6.6.6;b""#], "203.0.113.7"),
        (&[r#"host="a;for=6.6.6.6;b";for=203.0.113.7"#], "203.0.113.7"),
        (&[r#"for=203.0.113.7;host="a\",for=6.6.6.6;b=\"""#], "203.0.113.7"),
        (&[r#"for=203.0.113.7;host="a,for=6.6.6.6;b\\""#], "203.0.113.7"),
        (&["for=203.0.113.7;host=\"a\u{e9}\""], "203.0.113.7"),
        // An open quote of the client ends before the entries of the proxies.
        (&[r#"for="6.6.6.6, for=203.0.113.7"#], "203.0.113.7"),
        (&[r#"for="6.6.6.6, for="203.0.113.7:80""#], "203.0.113.7"),
        (&[r#"for="6.6.6.6\"#, "for=203.0.113.7"], "203.0.113.7"),
    ];
    for (values, expected) in cases {
        assert_client(&info, "10.0.0.1", "forwarded", values, expected);
        assert_client(&info, "198.51.100.9", "forwarded", values, "198.51.100.9");
    }
    // The other header comes from the client.
    assert_client(&info, "10.0.0.1", "x-forwarded-for", &["6.6.6.6"], "10.0.0.1");
}

#[test]
fn an_ipv4_network_is_trusted_in_either_notation() {
    for trusted in ["10.0.0.1", "::ffff:10.0.0.1", "::ffff:10.0.0.0/104", "::ffff:0:0/96"] {
        let info = ClientInfo::new().trust_proxies([trusted]).unwrap();
        for peer in ["10.0.0.1", "::ffff:10.0.0.1"] {
            assert_client(&info, peer, "x-forwarded-for", &["203.0.113.7"], "203.0.113.7");
        }
    }
    let info = ClientInfo::new().trust_proxies(["::ffff:10.0.0.0/104", "::/0"]).unwrap();
    assert_client(&info, "192.0.2.8", "x-forwarded-for", &["203.0.113.7"], "192.0.2.8");
}

#[test]
fn at_most_32_proxies_are_followed() {
    let behind = |proxies: usize| format!("203.0.113.7{}", ", 10.0.0.2".repeat(proxies));
    assert_client(&info(), "10.0.0.1", "x-forwarded-for", &[&behind(31)], "203.0.113.7");
    assert_client(&info(), "10.0.0.1", "x-forwarded-for", &[&behind(32)], "10.0.0.2");
    assert_client(&info(), "10.0.0.1", "x-forwarded-for", &[&behind(10_000)], "10.0.0.2");
}

#[test]
fn only_existing_metadata_is_stored() {
    let metadata = Metadata::default();
    assert_eq!(serde_json::to_value(&metadata).unwrap(), json!({}));
    let metadata = metadata.with_ip([203, 0, 113, 7].into()).with_user_agent("curl/8").with_field("device", "phone");
    let stored = json!({ "ip": "203.0.113.7", "ua": "curl/8", "fields": { "device": "phone" } });
    assert_eq!(serde_json::to_value(&metadata).unwrap(), stored);
    assert_eq!(serde_json::from_value::<Metadata>(stored).unwrap(), metadata);
    assert!(serde_json::from_value::<Metadata>(json!({ "agent": "curl/8" })).is_err());
}

#[test]
fn the_peer_comes_from_the_configured_extension() {
    let none = (HeaderMap::new(), Extensions::new());
    assert_eq!(info().client_ip(&lines("x-forwarded-for", &["6.6.6.6"]), &none.1), None);
    let mut extensions = Extensions::new();
    extensions.insert("192.0.2.1:80".parse::<SocketAddr>().unwrap());
    assert_eq!(info().client_ip(&none.0, &extensions), Some([192, 0, 2, 1].into()));
    let own = ClientInfo::new().peer(|extensions| extensions.get::<IpAddr>().copied());
    extensions.insert(IpAddr::from([192, 0, 2, 2]));
    assert_eq!(own.client_ip(&none.0, &extensions), Some([192, 0, 2, 2].into()));
}

#[test]
fn a_user_agent_is_truncated_and_sanitized() {
    let read = |info: &ClientInfo, value: &[u8]| {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, HeaderValue::from_bytes(value).unwrap());
        info.metadata(&headers, &Extensions::new()).user_agent().map(str::to_owned)
    };
    let info = ClientInfo::new();
    assert_eq!(read(&info, b"curl/8").as_deref(), Some("curl/8"));
    assert_eq!(read(&info, b""), None);
    assert_eq!(read(&info, &[b'a'; 5000]).unwrap().len(), 256);
    assert_eq!(read(&info, "é".repeat(200).as_bytes()).unwrap(), "é".repeat(128), "not in the middle of a character");
    assert_eq!(read(&info, b"a\tb\xff").as_deref(), Some("ab\u{fffd}"));
    assert_eq!(read(&info, "a\u{9b}31m".as_bytes()).as_deref(), Some("a31m"), "no control sequence reaches a terminal");
    assert_eq!(read(&info, "a\u{202e}b\u{2028}c".as_bytes()).as_deref(), Some("abc"), "nor does a text run backwards");
    assert_eq!(read(&info.clone().user_agent_max(0), b"curl/8"), None);
    assert_eq!(read(&info.user_agent_max(3), b"curl/8").as_deref(), Some("cur"));
}

#[test]
fn disabled_metadata_is_not_stored() {
    let metadata = ClientInfo::new().without_ip().user_agent_max(0).metadata(&HeaderMap::new(), &from("192.0.2.1"));
    assert!(metadata.is_empty());
    assert_eq!(ClientInfo::new().metadata(&HeaderMap::new(), &from("192.0.2.1")).ip(), Some([192, 0, 2, 1].into()));
}

#[test]
fn an_invalid_network_is_an_error_that_names_it() {
    for wrong in ["", "10.0.0.0/33", "example.org", "10.0.0", "::1/129", " 10.0.0.1"] {
        let error = ClientInfo::new().trust_proxies(["10.0.0.1", wrong]).unwrap_err();
        assert!(error.to_string().contains(&format!("{wrong:?}")), "{error}");
    }
}

proptest! {
    #[test]
    fn random_headers_never_panic_and_only_proxies_are_trusted(
        values in prop::collection::vec(prop::collection::vec(prop_oneof![
            Just(b','), Just(b'"'), Just(b'['), Just(b']'), Just(b':'), Just(b'.'), Just(b'='), Just(b';'),
            Just(b'f'), Just(b'o'), Just(b'r'), Just(b'1'), 32_u8..=126, 128_u8..=255
        ], 0..60), 0..4),
        by_rfc in any::<bool>(),
    ) {
        let (name, header) = if by_rfc {
            (header::FORWARDED, ForwardedHeader::Forwarded)
        } else {
            (HeaderName::from_static("x-forwarded-for"), ForwardedHeader::XForwardedFor)
        };
        let info = info().forwarded_header(header);
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_bytes(&value).unwrap());
        }
        prop_assert!(info.client_ip(&headers, &from("10.0.0.1")).is_some());
        let last = headers.get_all(&name).iter().next_back().map_or(&b""[..], |line| line.as_bytes()).to_vec();
        let added = if by_rfc { &b", for=\"203.0.113.7:80\";host=\"a,b\""[..] } else { b", 203.0.113.7" };
        let mut same_line = headers.clone();
        same_line.insert(&name, HeaderValue::from_bytes(&[&last, added].concat()).unwrap());
        prop_assert_eq!(info.client_ip(&same_line, &from("10.0.0.1")), Some([203, 0, 113, 7].into()));
        prop_assert_eq!(info.client_ip(&headers, &from("198.51.100.9")), Some([198, 51, 100, 9].into()));
    }
}
