//! Numbers in messages: no more digits than an f64 has.

use crate::common::single;
use wgpu_optim::{
    Adam, Clip, DynRule, Group, Layout, LossScale, Options, Schedule, Sgd, Step, cpu, recipes,
    schedule::{self, OneCycle},
};

/// The message of a layout with a rule.
fn layout_of(rule: impl Into<DynRule>) -> Option<String> {
    let layout = Layout::new([Group::new("g", rule).tensor("t", [1])]);
    layout.err().map(|error| error.to_string())
}

/// The message of a layout with two tensors at these offsets.
fn layout_at(first: u64, second: u64) -> Option<String> {
    let group = Group::new("g", Sgd::default()).tensor_at("a", [9], first).tensor_at("b", [9], second);
    Layout::new([group]).err().map(|error| error.to_string())
}

/// The digits of each number in a text, without zeros in front.
fn digits(text: &str) -> impl Iterator<Item = usize> {
    let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.');
    numbers.map(|number| number.replace('.', "").trim_start_matches('0').len())
}

#[test]
fn no_number_has_hundreds_of_digits() {
    let hostile = [
        f64::MAX,
        -f64::MAX,
        5e-324,
        -5e-324,
        1e300,
        -1e-300,
        1.0 / 3.0 * 1e200,
        f64::NAN,
        f64::NEG_INFINITY,
        1e39,
    ];
    let mut messages = Vec::new();
    let mut note = |error: Option<String>| messages.extend(error);
    for x in hostile {
        note(layout_of(Adam { eps: x, ..Adam::default() }));
        note(layout_of(Adam { beta1: x, ..Adam::default() }));
        note(layout_of(Sgd { momentum: x, ..Sgd::default() }));
        for schedule in [
            Schedule::from(x),
            schedule::linear(1.0, x, 3),
            schedule::exponential(1.0, x),
            schedule::polynomial(1.0, 0.0, 3, x),
            OneCycle { max_lr: 0.1, total_steps: 3, pct_start: x, ..OneCycle::default() }.into(),
        ] {
            note(schedule.at(2_000).err().map(|error| error.to_string()));
        }
        note(recipes::llm(x, 9).err().map(|error| error.to_string()));
        let mut optimizer = cpu::Optimizer::new(single(Sgd::default(), 1)).unwrap();
        for step in [Step::from(x), Step::from(0.1).with_momentum(x), Step::from(0.1).with_grad_scale(x)] {
            let result = optimizer.step(cpu::Tensors::flat(&mut [0.0], &[1.0]), step);
            note(result.err().map(|error| error.to_string()));
        }
        let scale = LossScale::default();
        for options in [
            Options { clip: Some(Clip::GlobalNorm(x)), ..Options::default() },
            Options { clip: Some(Clip::Value(x)), ..Options::default() },
            Options { loss_scale: Some(LossScale { max: x, ..scale }), ..Options::default() },
            Options { loss_scale: Some(LossScale { growth_factor: x, ..scale }), ..Options::default() },
        ] {
            note(options.validate().err().map(|error| error.to_string()));
        }
    }
    for n in [u64::MAX, u64::MAX - 1, 1 << 60] {
        note(schedule::one_cycle(1.0, 10).at(n).err().map(|error| error.to_string()));
        note(layout_at(n, 0));
        note(layout_at(n, n));
        note(layout_at(1, n - 1));
    }
    let out_of_order = Schedule::from(1.0).then(u64::MAX, 1.0).then(0, 1.0);
    note(out_of_order.validate().err().map(|error| error.to_string()));
    assert!(messages.len() > 100, "{}", messages.len());
    for message in messages {
        assert!(digits(&message).all(|digits| digits <= 17), "{message}");
    }
}

/// The sources of all errors, with their messages.
fn sources(directory: &std::path::Path, texts: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, texts);
        } else {
            texts.push(std::fs::read_to_string(path).unwrap());
        }
    }
}

/// A message ends with a bound (`must be …`) or, after a colon or a semicolon, with an action for the caller.
#[test]
fn messages_end_with_what_the_caller_can_do() {
    const VERBS: [&str; 22] = [
        "add",
        "advance",
        "align",
        "bind",
        "choose",
        "create",
        "divide",
        "free",
        "give",
        "hand",
        "implement",
        "join",
        "load",
        "open",
        "place",
        "put",
        "read",
        "request",
        "set",
        "submit",
        "use",
        "wait",
    ];
    // They end with the message of another error, of the device or of the operating system.
    let wraps = |format: &str| ["{reason}", "{source}", "{conflict}"].iter().any(|end| format.ends_with(end));
    let mut texts = Vec::new();
    sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/error"), &mut texts);
    let mut seen = 0;
    for text in &texts {
        for attribute in text.split("#[error(").skip(1) {
            let Some(literal) = attribute.trim_start().strip_prefix('"') else { continue };
            let mut quoted = false;
            let end = literal.find(|c| {
                c == '"' && !std::mem::replace(&mut quoted, false) || {
                    quoted = c == '\\';
                    false
                }
            });
            let format = literal[..end.unwrap()].split_whitespace().collect::<Vec<_>>().join(" ");
            let format = format.replace("\\ ", "");
            let last = format.rsplit(": ").next().unwrap().rsplit("; ").next().unwrap();
            let does = VERBS.contains(&last.split(' ').next().unwrap());
            // Of a path's name and of a size, the bound is printed whole.
            let bounded = format.contains("must ") || format.ends_with("{bound}") || format.ends_with("{}");
            assert!(does || bounded || wraps(&format), "{format}");
            seen += 1;
        }
    }
    assert!(seen > 70, "{seen}");
}
