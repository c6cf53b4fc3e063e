//! Asks before what ends connections. Who is not at a terminal says so with the command.

use std::io::{BufRead, IsTerminal, Write};

/// Whether to go on with what `cause` says will happen: asked at a terminal, refused elsewhere unless `sure`. Says why
/// where it is not done; `remedy` is the flag that does it without asking.
pub fn confirm(cause: &str, sure: bool, remedy: &str) -> bool {
    let terminal = std::io::stdin().is_terminal();
    let answered = decide(cause, sure, terminal, &mut std::io::stdin().lock(), &mut std::io::stderr());
    match answered {
        Answered::GoOn => true,
        Answered::Declined => {
            eprintln!("nothing was changed");
            false
        }
        Answered::Unasked => {
            eprintln!("refused: {cause}\n  {remedy} does it anyway");
            false
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    GoOn,
    Declined,
    /// Nobody is there to ask.
    Unasked,
}

fn decide(cause: &str, sure: bool, terminal: bool, input: &mut impl BufRead, output: &mut impl Write) -> Answered {
    if sure {
        return Answered::GoOn;
    }
    if !terminal {
        return Answered::Unasked;
    }
    let mut line = String::new();
    // A question that cannot be put, or an answer that cannot be read, is no yes.
    let asked = write!(output, "{cause}. Go on? [y/N] ").and_then(|()| output.flush());
    if asked.and_then(|()| input.read_line(&mut line)).is_err() {
        return Answered::Declined;
    }
    match line.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Answered::GoOn,
        _ => Answered::Declined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(sure: bool, terminal: bool, typed: &str) -> (Answered, String) {
        let mut said = Vec::new();
        let answered = decide("birch is cut off", sure, terminal, &mut typed.as_bytes(), &mut said);
        (answered, String::from_utf8(said).unwrap())
    }

    #[test]
    fn a_terminal_is_asked_and_only_a_yes_goes_on() {
        let question = "birch is cut off. Go on? [y/N] ".to_owned();
        for typed in ["y\n", "Yes\n", " YES "] {
            assert_eq!(answered(false, true, typed), (Answered::GoOn, question.clone()), "{typed:?}");
        }
        for typed in ["", "\n", "n\n", "yess\n", "no\ny\n"] {
            assert_eq!(answered(false, true, typed), (Answered::Declined, question.clone()), "{typed:?}");
        }
    }

    #[test]
    fn where_nobody_can_be_asked_nothing_is_done_unless_the_command_says_so() {
        assert_eq!(answered(false, false, "y\n"), (Answered::Unasked, String::new()));
        for terminal in [false, true] {
            assert_eq!(answered(true, terminal, "n\n"), (Answered::GoOn, String::new()));
        }
    }
}
