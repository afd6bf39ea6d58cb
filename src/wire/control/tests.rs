#![allow(clippy::unwrap_used)]

use super::*;

/// The example in docs/protocol.md; its base64 is Python's.
const EXAMPLE: &[u8] = b"dnxl/1:AgEDAGtleQcIACoAAAAAAAAABAEAAwUIAHRvbyBzbG93";

fn key() -> OperationKey {
    OperationKey::new("key")
}

fn left(reason: EndReason, text: &str) -> ControlMessage {
    ControlMessage::Left {
        operation: key(),
        transfer: TransferId(42),
        reason,
        text: text.to_owned(),
    }
}

fn hello(connection: usize) -> ControlMessage {
    ControlMessage::Hello {
        operation: key(),
        transfer: TransferId(42),
        connection: Bytes::from(vec![7; connection]),
        process: ProcessId {
            pid: 1,
            start: 2,
            host: 3,
        },
    }
}

fn packed(body: &[u8]) -> Vec<u8> {
    [b"dnxl/1:", STANDARD.encode(body).as_bytes()].concat()
}

fn field(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, kind, value);
    bytes
}

fn which() -> Vec<u8> {
    field(TRANSFER, &42_u64.to_le_bytes())
}

fn message(notification: &[u8]) -> (ControlMessage, usize) {
    match ControlMessage::decode(notification).unwrap() {
        Incoming::Message {
            message,
            unknown_fields,
        } => (message, unknown_fields),
        other => panic!("{other:?}"),
    }
}

fn refusal(notification: &[u8]) -> String {
    let error = ControlMessage::decode(notification).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Metadata);
    error.to_string()
}

#[test]
fn matches_the_documented_example() {
    let example = left(EndReason::TimedOut, "too slow");
    assert_eq!(example.encode().unwrap(), EXAMPLE);
    assert_eq!(message(EXAMPLE), (example, 0));
}

#[test]
fn what_is_no_message_is_told_from_what_is_not_understood() {
    for other in [&b""[..], b"dnxl", b"DNXL/1:", b" dnxl/1:", b"\xff\xfe"] {
        assert_eq!(ControlMessage::decode(other).unwrap(), Incoming::Other, "{other:?}");
    }
    let later_kind = packed(&[8, 1, 0, 0]);
    for unknown in [&b"dnxl/"[..], b"dnxl/1", b"dnxl/2:AQ==", b"dnxl/11:AQ==", &later_kind] {
        assert_eq!(
            ControlMessage::decode(unknown).unwrap(),
            Incoming::Unknown,
            "{unknown:?}"
        );
    }
}

#[test]
fn fields_without_use_are_counted() {
    let body = [
        &[QUIET][..],
        &field(200, b"later"),
        &field(NONCE, &[0; 8]),
        &field(OPERATION, b"key"),
        &which(),
        &field(200, b""),
    ];
    let quiet = ControlMessage::Quiet {
        operation: key(),
        transfer: TransferId(42),
    };
    assert_eq!(message(&packed(&body.concat())), (quiet, 3));
}

#[test]
fn an_unknown_reason_is_a_failure_and_text_may_be_missing() {
    for (number, reason) in [
        (0, EndReason::Failed),
        (1, EndReason::Cancelled),
        (2, EndReason::Failed),
        (3, EndReason::TimedOut),
        (4, EndReason::Closed),
        (5, EndReason::LeaseExpired),
        (6, EndReason::Completed),
        (7, EndReason::Failed),
    ] {
        let body = [
            &[LEFT][..],
            &field(OPERATION, b"key"),
            &which(),
            &field(REASON, &[number]),
        ]
        .concat();
        assert_eq!(message(&packed(&body)), (left(reason, ""), 0));
    }
}

#[test]
fn malformed_messages_are_refused() {
    let of = |kind: u8, fields: &[&[u8]]| packed(&[&[kind][..], &fields.concat()].concat());
    let (operation, reason) = (&field(OPERATION, b"key"), &field(REASON, &[1]));
    let transfer = &which();
    for (notification, expected) in [
        (b"dnxl/1:".to_vec(), "ends before the kind"),
        (b"dnxl/1:A".to_vec(), "not standard base64"),
        (b"dnxl/1:Aw".to_vec(), "not standard base64"),
        (b"dnxl/1:A w==".to_vec(), "not standard base64"),
        (of(QUIET, &[]), "missing (field=1)"),
        (of(QUIET, &[operation]), "missing (field=7)"),
        (of(NEVER, &[operation]), "missing (field=7)"),
        (of(LEFT, &[operation, reason]), "missing (field=7)"),
        (of(LEFT, &[operation, transfer]), "missing (field=4)"),
        (of(ENDED, &[operation, transfer]), "missing (field=4)"),
        (of(HELLO, &[operation, transfer]), "missing (field=2)"),
        (
            of(HELLO, &[operation, transfer, &field(CONNECTION, b"c")]),
            "missing (field=3)",
        ),
        (of(PONG, &[operation, transfer]), "missing (field=6)"),
        (
            of(QUIET, &[operation, &field(TRANSFER, &[1; 4])]),
            "wrong size (field=7",
        ),
        (of(QUIET, &[operation, operation]), "repeated (field=1)"),
        (of(QUIET, &[&operation[..5]]), "ends within a field (field=1)"),
        (of(QUIET, &[operation, &[200]]), "ends within a field (field=200)"),
        (of(QUIET, &[&field(OPERATION, b"")]), "wrong size (field=1"),
        (of(LEFT, &[operation, &field(REASON, &[1, 1])]), "wrong size (field=4"),
        (of(PING, &[operation, transfer]), "missing (field=6)"),
        (of(PING, &[&field(NONCE, &[1; 8])]), "missing (field=1)"),
        (of(PONG, &[&field(NONCE, &[1; 8])]), "missing (field=1)"),
        (of(PONG, &[operation, &field(NONCE, &[1; 4])]), "wrong size (field=6"),
        (of(HELLO, &[&field(PROCESS, &[1; 11])]), "wrong size (field=3"),
        (
            of(ENDED, &[operation, transfer, reason, &field(TEXT, &[0xff])]),
            "not UTF-8 (field=5",
        ),
        (
            of(ENDED, &[&field(TEXT, &[b'a'; limits::MAX_CONTROL_TEXT + 1])]),
            "wrong size (field=5",
        ),
        (
            of(QUIET, &[&field(OPERATION, &[b'a'; limits::MAX_NOTIFICATION_KEY + 1])]),
            "wrong size (field=1",
        ),
    ] {
        let text = refusal(&notification);
        assert!(text.contains(expected), "{text} instead of {expected}");
    }
}

#[test]
fn both_directions_stop_at_the_same_length() {
    // The kind, and what the four fields take beside the connection.
    let room = limits::MAX_CONTROL_MESSAGE - 1 - (3 + 3) - (3 + 8) - 3 - (3 + 12);
    let longest = hello(room).encode().unwrap();
    assert_eq!(longest.len(), NAME.len() + VERSION.len() + MAX_ENCODED);
    assert_eq!(message(&longest), (hello(room), 0));
    for length in [room + 1, 1 << 16, (1 << 16) + 1, 1 << 20] {
        let error = hello(length).encode().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Metadata);
        assert!(error.to_string().contains("too long"), "{error}");
    }
    let mut body = vec![0; limits::MAX_CONTROL_MESSAGE + 1];
    body[0] = QUIET;
    assert!(refusal(&packed(&body)).contains("too long"), "within a group of base64");
    // Not one character of it is looked at.
    let flood = [b"dnxl/1:", vec![b'!'; MAX_ENCODED + 1].as_slice()].concat();
    assert!(refusal(&flood).contains("too long"));
}

#[test]
fn keys_that_would_be_refused_are_not_sent() {
    for length in [0, limits::MAX_NOTIFICATION_KEY + 1] {
        let quiet = ControlMessage::Quiet {
            operation: OperationKey::new(vec![b'a'; length]),
            transfer: TransferId(42),
        };
        assert_eq!(quiet.encode().unwrap_err().kind(), ErrorKind::Metadata);
    }
}

#[test]
fn long_text_is_cut_between_characters() {
    let most = limits::MAX_CONTROL_TEXT;
    for (text, arrives) in [
        ("a".repeat(most), "a".repeat(most)),
        ("a".repeat(most + 1), "a".repeat(most)),
        ("a".repeat(most - 1) + "é", "a".repeat(most - 1)),
        ("a".repeat(most - 2) + "é!", "a".repeat(most - 2) + "é"),
        ("a".repeat(most - 3) + "🦀", "a".repeat(most - 3)),
    ] {
        let notification = left(EndReason::Failed, &text).encode().unwrap();
        assert_eq!(message(&notification).0, left(EndReason::Failed, &arrives));
    }
}
