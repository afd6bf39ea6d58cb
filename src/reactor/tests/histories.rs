//! Random histories of many transfers, with failures, cancels and restarts.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Action {
    /// So many pieces, in so many descriptors, of the n-th region.
    Start(u64, u64, u64),
    Cancel(usize),
    Ticks(usize),
    Release(usize),
    Fail(Call, usize),
    Completion(Completion),
    Reregister(u64),
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    let call = prop_oneof![
        Just(Call::Register),
        Just(Call::Load),
        Just(Call::Drop),
        Just(Call::Prepare),
        Just(Call::Post),
        Just(Call::Poll),
        Just(Call::Notify),
        Just(Call::PollNotifications),
    ];
    let completion = prop_oneof![
        Just(Completion::Inline),
        (1_usize..5).prop_map(Completion::AfterPolls),
        Just(Completion::Held),
    ];
    prop_oneof![
        4 => (0_u64..4, 1_u64..3, 0_u64..2).prop_map(|(pieces, parts, region)| Action::Start(pieces, parts, region)),
        1 => (0_usize..8).prop_map(Action::Cancel),
        6 => (1_usize..6).prop_map(Action::Ticks),
        2 => (1_usize..4).prop_map(Action::Release),
        1 => (call, 1_usize..4).prop_map(|(call, nth)| Action::Fail(call, nth)),
        1 => completion.prop_map(Action::Completion),
        1 => (0_u64..2).prop_map(Action::Reregister),
        1 => Just(Action::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens: no rule of NIXL is broken, every operation ends, an outcome never changes, a completed
    /// operation notified exactly once and another one never, and memory is let go unless it can never be shown quiet.
    #[test]
    fn every_history_ends_well(actions in prop::collection::vec(action(), 1..60)) {
        let mut bench = Bench::new(Completion::Inline);
        let regions = [0_u64, 1].map(|index| range(REMOTE + (index << 40), 4 * PIECE.bytes));
        let mut metadata = regions.map(|region| bench.exposed(region));
        let mut started: Vec<Started> = Vec::new();
        let mut outcomes: Vec<Option<Status>> = Vec::new();
        let mut notified: Vec<Vec<u8>> = Vec::new();
        for action in actions {
            match action {
                Action::Start(pieces, parts, region) => {
                    let region = region as usize;
                    let part = pieces * PIECE.bytes / parts;
                    let remote: Vec<MemoryRange> = (0..parts)
                        .map(|index| range(regions[region].addr.0 + index * part, part))
                        .collect();
                    let (transfer, task) = bench.transfer(&metadata[region], &remote);
                    started.push(transfer);
                    outcomes.push(None);
                    bench.lane.add(task);
                }
                Action::Cancel(which) if !started.is_empty() => {
                    started[which % started.len()].operation.finish(Outcome::Cancelled);
                }
                Action::Cancel(_) => {}
                Action::Ticks(count) => bench.ticks(count),
                Action::Release(count) => {
                    bench.network.release(count);
                }
                Action::Fail(call, nth) => bench.network.fail(READER, call, nth),
                Action::Completion(completion) => bench.network.set_completion(completion),
                Action::Reregister(region) => {
                    metadata[region as usize] = bench.exposed(regions[region as usize]);
                }
                Action::Restart => {
                    notified.extend(bench.owner().notifications().unwrap());
                    bench.owner = None;
                    bench.owner = Some(FakeOwner::new(&bench.network, OWNER).unwrap());
                    metadata = regions.map(|region| bench.exposed(region));
                }
            }
            for (transfer, outcome) in started.iter().zip(&mut outcomes) {
                if let Some(outcome) = outcome {
                    prop_assert_eq!(transfer.status(), *outcome);
                } else if transfer.operation.is_finished() {
                    *outcome = Some(transfer.status());
                }
            }
        }
        bench.drain();
        notified.extend(bench.owner().notifications().unwrap());
        let mut pinned = 0;
        for transfer in &started {
            prop_assert!(transfer.operation.is_finished());
            pinned += usize::from(transfer.is_pinned());
            let told = notified.iter().filter(|key| *key == transfer.operation.key().as_bytes()).count();
            match transfer.status() {
                Status::Complete => prop_assert!(told <= 1),
                // Cancelled while its last piece was on its way.
                Status::Cancelled => prop_assert!(told <= 1),
                _ => prop_assert_eq!(told, 0),
            }
        }
        prop_assert!(pinned <= bench.lane.unquiet());
        prop_assert_eq!(bench.lane.is_quiet(), bench.lane.unquiet() == 0);
        prop_assert_eq!(bench.network.violations(), [""; 0]);
        if !bench.lane.is_quiet() {
            std::mem::forget(bench);
        }
    }
}
