//! Provides a frame at another place, and for another sequence of the same text, tokens and targets: its rows move over, bit
//! for bit.

use super::{Frame, FrameContext, decompress, header::length, join, open, seal, sections};
use crate::{Error, Fingerprint, Result, View};

/// The sequence that a frame's rows are to stand for.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// Its id.
    pub sequence_id: u64,
    /// Its text, which must be that of the frame.
    pub text: &'a str,
    /// Its targets, which must be those of the frame.
    pub target_mask: &'a [bool],
    /// The student's view of it.
    pub view: Option<&'a View>,
    /// Where it goes.
    pub context: &'a FrameContext,
}

impl Frame {
    /// The bytes of the same frame at another place; nothing is compressed anew.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn move_place(bytes: &[u8], from: &FrameContext, to: &FrameContext) -> Result<Vec<u8>> {
        let (mut header, compressed, coded) = open(bytes, from)?;
        header.index = to.index;
        join(&header, compressed, coded, to)
    }

    /// The bytes of the frame that [`encode`](Self::encode) would give for `to` with the rows of the frame in `bytes`.
    /// Tokens are not looked at: they follow from the text, for one tokenizer.
    ///
    /// # Errors
    /// As [`check`](Self::check); `Invalid` where text or targets are others, or the view breaks a rule.
    pub fn move_to(bytes: &[u8], context: &FrameContext, to: &Destination<'_>) -> Result<Vec<u8>> {
        let (mut header, compressed, coded) = open(bytes, context)?;
        let index = to.context.index;
        let invalid = |what, reason: &str| Error::Invalid {
            index: header.index,
            what,
            reason: reason.to_owned(),
        };
        if header.text_digest != Fingerprint::of(to.text.as_bytes()) {
            return Err(invalid("text", "is that of another sequence"));
        }
        if let Some((what, reason)) = to.view.and_then(|view| view.flaw(to.text)) {
            return Err(invalid(what, &reason));
        }
        let planes = decompress(&header, compressed)?;
        let mut mask = Vec::new();
        sections::write_mask(&mut mask, to.target_mask);
        let tokens = header.tokens as usize;
        if to.target_mask.len() != tokens || !planes.starts_with(&mask) {
            return Err(invalid("target mask", "is that of another sequence"));
        }
        let before = mask.len() + header.text_bytes as usize;
        let after = before + header.view_bytes as usize;
        let cut = || invalid("planes", "are shorter than their parts");
        let (head, tail) = planes
            .get(..before)
            .zip(planes.get(after..))
            .ok_or_else(cut)?;
        let view = to.view.map(View::to_bytes).unwrap_or_default();
        let planes = [head, &view, tail].concat();
        header.sequence_id = to.sequence_id;
        header.index = index;
        header.view_bytes = length("view", view.len())?;
        header.body_bytes = header.checked_body_bytes()?;
        seal(header, &planes, coded, to.context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        FieldRange, Link, ValueCoding,
        frame::tests::{context, sample},
    };

    fn view(record: &str) -> View {
        let student = FieldRange {
            field: "text".to_owned(),
            start: 0,
            end: 1,
        };
        View {
            record: record.to_owned(),
            prompts: false,
            shared: vec![Link {
                teacher: (0, 1),
                student,
            }],
            links: vec![],
        }
    }

    /// The frame that was moved is the one that would have been written.
    #[test]
    fn a_moved_frame_is_the_one_that_is_written_of_the_same_rows() {
        let views = [None, Some(view("{}")), Some(view(r#"{"text": "longer"}"#))];
        for coding in [
            ValueCoding::F16,
            ValueCoding::GRADED,
            ValueCoding::Step(0.125),
        ] {
            for (before, after) in views
                .iter()
                .flat_map(|one| views.iter().map(move |o| (one, o)))
            {
                let frame = Frame {
                    view: before.clone(),
                    ..sample(3, 4, 40, coding, None)
                };
                let bytes = frame.encode(&context(5)).unwrap();
                let there = FrameContext {
                    shard: 9,
                    ..context(77)
                };
                let to = Destination {
                    sequence_id: 12,
                    text: &frame.text,
                    target_mask: &frame.target_mask,
                    view: after.as_ref(),
                    context: &there,
                };
                let moved = Frame::move_to(&bytes, &context(5), &to).unwrap();
                let expected = Frame {
                    sequence_id: 12,
                    index: 77,
                    view: after.clone(),
                    ..frame.clone()
                };
                assert_eq!(moved, expected.encode(&there).unwrap());
                let back = Destination {
                    sequence_id: frame.sequence_id,
                    view: before.as_ref(),
                    context: &context(5),
                    ..to
                };
                assert_eq!(Frame::move_to(&moved, &there, &back).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn a_frame_at_another_place_is_the_one_that_is_written_there() {
        for view in [None, Some(view("{}"))] {
            let frame = Frame {
                view,
                ..sample(3, 4, 40, ValueCoding::GRADED, None)
            };
            let bytes = frame.encode(&context(5)).unwrap();
            let there = FrameContext {
                shard: 0,
                ..context(77)
            };
            let moved = Frame::move_place(&bytes, &context(5), &there).unwrap();
            let expected = Frame { index: 77, ..frame };
            assert_eq!(moved, expected.encode(&there).unwrap());
            // Not from a place that it is not at, or with a bit turned.
            assert!(Frame::move_place(&bytes, &context(6), &there).is_err());
            let mut damaged = bytes.clone();
            *damaged.last_mut().unwrap() ^= 1;
            assert!(Frame::move_place(&damaged, &context(5), &there).is_err());
        }
    }

    #[test]
    fn rows_do_not_move_to_another_text_or_other_targets() {
        let frame = sample(3, 4, 40, ValueCoding::GRADED, None);
        let bytes = frame.encode(&context(5)).unwrap();
        let fine = Destination {
            sequence_id: 1,
            text: &frame.text,
            target_mask: &frame.target_mask,
            view: None,
            context: &context(6),
        };
        let text = format!("{}.", frame.text);
        let mut mask = frame.target_mask.clone();
        mask.reverse();
        let outside = View {
            shared: vec![Link {
                teacher: (0, 900),
                student: view("{}").shared.remove(0).student,
            }],
            ..view("{}")
        };
        for (to, what) in [
            (
                Destination {
                    text: &text,
                    ..fine
                },
                "text",
            ),
            (
                Destination {
                    target_mask: &mask,
                    ..fine
                },
                "target mask",
            ),
            (
                Destination {
                    target_mask: mask.get(1..).unwrap(),
                    ..fine
                },
                "target mask",
            ),
            (
                Destination {
                    view: Some(&outside),
                    ..fine
                },
                "shared",
            ),
        ] {
            let error = Frame::move_to(&bytes, &context(5), &to).unwrap_err();
            let named = matches!(error, Error::Invalid { what: found, .. } if found == what);
            assert!(named, "{error}");
        }
        // Nor from another place, or with a bit turned.
        assert!(Frame::move_to(&bytes, &context(4), &fine).is_err());
        let mut damaged = bytes.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(Frame::move_to(&damaged, &context(5), &fine).is_err());
    }
}
