//! Children forked off a process at work on real NIXL: what they inherited is inert, what they make works.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

#[macro_use]
mod support;

use dynamo_nixl::connector::{BeginOptions, Connector, shutdown};
use dynamo_nixl::error::ErrorKind;
use dynamo_nixl::handle::OperationHandle;
use dynamo_nixl::operation::{Phase, Status};
use dynamo_nixl::types::Direction;
use dynamo_nixl::wire::Encoding;
use support::LIMIT;
use support::memory::Buffer;

scenarios!(
    log_level: None,
    scenarios: [a_new_connector_in_a_child, a_child_of_a_process_that_only_loaded_nixl, three_generations],
    roles: []
);

const BYTES: usize = 300_000;

/// Two connectors of one process, and an exchange between them.
struct Pair {
    owner: Connector,
    reader: Connector,
}

impl Pair {
    fn new(name: &str) -> Self {
        let named = |role: &str| Connector::new(&format!("{name}-{role}-{}", std::process::id()));
        Self {
            owner: named("owner"),
            reader: named("reader"),
        }
    }

    fn expose(&self) -> OperationHandle {
        let source = Buffer::patterned(BYTES, 5);
        let memory = vec![source.memory()];
        self.owner.expose(Direction::Read, memory, Some(LIMIT), false).unwrap()
    }

    fn exchange(&self) {
        let source = Buffer::patterned(BYTES, 5);
        let memory = vec![source.memory()];
        let exposed = self.owner.expose(Direction::Read, memory, Some(LIMIT), false).unwrap();
        assert!(exposed.operation().wait(Phase::Started, Some(LIMIT)));
        let target = Buffer::zeroed(BYTES);
        let begun = self.reader.begin(
            Direction::Read,
            &exposed.metadata(Encoding::Base64).unwrap(),
            exposed.operation().key().clone(),
            &[source.range()],
            vec![target.memory()],
            BeginOptions::default(),
        );
        let begun = begun.unwrap();
        for handle in [&begun, &exposed] {
            assert!(handle.operation().wait(Phase::Quiet, Some(LIMIT)));
            assert_eq!(handle.operation().status(), Status::Complete);
        }
        assert!(target.is_patterned(5));
    }
}

/// Runs `body` in a forked child, which has to end by itself and well.
fn in_child(body: impl FnOnce()) {
    // SAFETY: the child has this thread alone. Of what others may have held, glibc's allocator is whole in a child, and the
    // crate is what is tested.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "no child");
    if pid == 0 {
        // SAFETY: it only sets a timer of the child's: the kernel ends one that hangs.
        unsafe { libc::alarm(60) };
        let body = std::panic::AssertUnwindSafe(body);
        let went_well = std::panic::catch_unwind(body).is_ok() && shutdown(LIMIT);
        // With all that the process's end runs, NIXL's and UCX's own among it.
        std::process::exit(if went_well { 0 } else { 1 });
    }
    let mut status = 0;
    // SAFETY: it writes the status of this child to where there is room for it.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "the child did not end well");
}

fn a_new_connector_in_a_child() {
    let inherited = Pair::new("parent");
    inherited.exchange();
    let open = inherited.expose();
    assert!(open.operation().wait(Phase::Started, Some(LIMIT)));
    for _ in 0..3 {
        in_child(|| {
            let refused = |error: dynamo_nixl::error::Error| assert_eq!(error.kind(), ErrorKind::Forked);
            refused(inherited.owner.open().unwrap_err());
            let own = Pair::new("child");
            own.exchange();
            refused(inherited.owner.open().unwrap_err());
            refused(open.metadata(Encoding::Base64).unwrap_err());
            refused(open.renew(None).unwrap_err());
            assert!(!open.cancel());
            assert!(inherited.owner.close(LIMIT));
            own.exchange();
        });
        inherited.exchange();
    }
    assert!(open.metadata(Encoding::Base64).is_ok());
}

fn a_child_of_a_process_that_only_loaded_nixl() {
    dynamo_nixl::transport::loader::ensure_loaded().unwrap();
    in_child(|| Pair::new("child").exchange());
    Pair::new("parent").exchange();
    in_child(|| Pair::new("child").exchange());
}

fn three_generations() {
    fn generation(number: u32) {
        Pair::new("generation").exchange();
        if number < 3 {
            in_child(|| generation(number + 1));
            Pair::new("generation-again").exchange();
        }
    }
    generation(0);
}
