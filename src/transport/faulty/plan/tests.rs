//! Which events are struck, and how long they are held.

use super::*;

fn pattern(faults: &Faults, when: &When) -> Vec<bool> {
    let _fault = faults.add(Effect::Stale, when.clone());
    let peer = AgentName::new("owner-1");
    let struck = (0..200).map(|_| faults.is_stale(&peer)).collect();
    faults.clear();
    struck
}

#[test]
fn by_count_the_events_from_the_nth_on_are_struck() {
    let when = When {
        at: 3,
        count: Some(2),
        ..When::default()
    };
    let struck = pattern(&Faults::new(0), &when);
    assert_eq!(struck[..6], [false, false, true, true, false, false]);
    let all = When { count: None, ..when };
    assert_eq!(
        pattern(&Faults::new(0), &all).iter().filter(|struck| **struck).count(),
        198
    );
}

#[test]
fn by_probability_the_seed_decides() {
    let when = When {
        count: None,
        probability: 0.5,
        ..When::default()
    };
    let first = pattern(&Faults::new(7), &when);
    assert_eq!(pattern(&Faults::new(7), &when), first);
    assert_ne!(pattern(&Faults::new(8), &when), first);
    let struck = first.iter().filter(|struck| **struck).count();
    assert!((60..140).contains(&struck), "{struck} of 200");
    // Another one beside it changes nothing.
    let faults = Faults::new(7);
    let peer = AgentName::new("owner-1");
    let stale = faults.add(Effect::Stale, when.clone());
    let slow = faults.add(Effect::Slow(Duration::ZERO), when);
    let beside: Vec<bool> = (0..200)
        .map(|_| {
            let _ = faults.piece(&peer, Instant::now());
            faults.is_stale(&peer)
        })
        .collect();
    assert_eq!(beside, first);
    assert_eq!(faults.injected()["stale"], stale.injected());
    assert_eq!(faults.injected()["slow"], slow.injected());
}

#[test]
fn what_is_held_goes_when_its_time_is_up_or_it_is_released() {
    let (faults, now, second) = (Faults::new(0), Instant::now(), Duration::from_secs(1));
    let peer = AgentName::new("owner-1");
    let held = |fault: &Fault| {
        let Fate::Posted { mut holds, fails } = faults.piece(&peer, now) else {
            panic!("a piece was refused");
        };
        assert!(!fails && holds.len() == 1 && fault.injected() > 0);
        holds.remove(0)
    };
    let slow = faults.add(Effect::Slow(second), When::default());
    let hold = held(&slow);
    assert!(!hold.is_over(now));
    assert!(hold.is_over(now + second));
    let every = When {
        count: None,
        ..When::default()
    };
    let stall = faults.add(Effect::Stall(None), every);
    let (earlier, year) = (held(&stall), 365 * 86_400 * second);
    assert!(!earlier.is_over(now + year));
    stall.release();
    let later = held(&stall);
    assert!(earlier.is_over(now) && !later.is_over(now));
    stall.clear();
    assert!(later.is_over(now));
    assert!(matches!(faults.piece(&peer, now), Fate::Posted { holds, .. } if holds.is_empty()));
}

#[test]
fn a_peer_is_named_by_its_worker_or_its_agent() {
    let agents = ["w-1", "w-12", "w-1-plain", "w-1-spare-0", "w"];
    assert!(agents.iter().all(|agent| is_agent_of(agent, "w")));
    let others = ["w-1-1", "ww-1", "w-x", "w-", "w-1-", "w-1-spare-", "v-1", "w-1-1-plain"];
    assert!(!others.iter().any(|agent| is_agent_of(agent, "w")));
    assert!(is_agent_of("w-1-spare-3", "w-1") && is_agent_of("w-1-plain", "w-1"));
}
