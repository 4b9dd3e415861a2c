//! Provides all adapters of a decoder in the activations' type, side by side in a card's memory, as products take them.

use std::collections::HashMap;

use candle_core::Tensor;
use distill_kernels::Machine;
use distill_kernels::cast::gather;

use crate::{Decoder, Linear, Result};

/// Adapters begin at a multiple of so many elements: where tensor cores read 16-bit numbers well.
const ALIGNED: usize = 8;

/// The adapters of linears that read one input.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// Every adapter, flat.
    pub(super) all: Tensor,
    /// Where the A of all, one below the other, begin: [sum of ranks, in].
    pub(super) a: usize,
    /// The linears that have an adapter.
    pub(super) members: Vec<Member>,
    /// The sum of ranks.
    pub(super) rank: usize,
}

/// One adapter of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Member {
    /// Which of the group's linears has it, and where that one's outputs begin among all.
    pub(super) linear: usize,
    pub(super) first: usize,
    pub(super) width: usize,
    /// Its rank, and where its rows of A begin among all.
    pub(super) rank: usize,
    pub(super) low: usize,
    /// Where its B [width, rank] begins.
    pub(super) b: usize,
    pub(super) scale: f32,
}

impl Group {
    /// The members in runs that are alike and lie at equal distances, so that one product with several matrices does.
    pub(super) fn runs(&self) -> Vec<(Member, usize)> {
        let mut runs: Vec<(Member, usize)> = Vec::new();
        for member in &self.members {
            match runs.last_mut() {
                Some((head, count)) if follows(head, *count, member) => *count += 1,
                _ => runs.push((*member, 1)),
            }
        }
        runs
    }
}

fn follows(head: &Member, count: usize, member: &Member) -> bool {
    let next = Member {
        linear: member.linear,
        first: head.first + count * head.width,
        low: head.low + count * head.rank,
        b: head.b + count * head.width * head.rank,
        ..*head
    };
    next == *member
}

/// Groups by the name of their first linear.
#[derive(Debug, Default)]
pub(super) struct Adapters {
    groups: HashMap<String, Group>,
}

impl Adapters {
    pub(super) fn of(decoder: &Decoder, machine: Machine) -> Result<Self> {
        let mut sources = Vec::new();
        let mut len = 0;
        let mut groups = Vec::new();
        for layer in decoder.layers() {
            let [q, k, v, o] = layer.attention().linears();
            let [gate, up, down] = layer.mlp().linears();
            for linears in [&[q, k, v][..], &[o], &[gate, up], &[down]] {
                if linears.iter().any(|linear| linear.lora().is_some()) {
                    groups.push((linears[0].prefix(), plan(linears, &mut len, &mut sources)?));
                }
            }
        }
        if groups.is_empty() {
            return Ok(Self::default());
        }
        let sources: Vec<_> = sources.iter().map(|(at, source)| (*at, source)).collect();
        let all = gather(&sources, len, decoder.dtype(), machine.compute)?;
        let group = |(name, (a, members, rank)): (&str, (usize, Vec<Member>, usize))| {
            let all = all.clone();
            let group = Group {
                all,
                a,
                members,
                rank,
            };
            (name.to_owned(), group)
        };
        Ok(Self {
            groups: groups.into_iter().map(group).collect(),
        })
    }

    pub(super) fn group(&self, linears: &[&Linear]) -> Option<Group> {
        let first = linears.first()?;
        self.groups.get(first.prefix()).cloned()
    }
}

/// Lays out a group from element `len` on: where its A begin, its members, the sum of their ranks.
fn plan(
    linears: &[&Linear],
    len: &mut usize,
    sources: &mut Vec<(usize, Tensor)>,
) -> Result<(usize, Vec<Member>, usize)> {
    let begin = len.next_multiple_of(ALIGNED);
    let mut at = begin;
    let (mut members, mut low, mut first) = (Vec::new(), 0, 0);
    for (index, linear) in linears.iter().enumerate() {
        if let Some(lora) = linear.lora() {
            let (rank, inputs) = lora.a.dims2()?;
            sources.push((at, lora.a.as_tensor().clone()));
            members.push(Member {
                linear: index,
                first,
                width: linear.out_features(),
                rank,
                low,
                b: 0,
                scale: lora.scale as f32,
            });
            low += rank;
            at += rank * inputs;
        }
        first += linear.out_features();
    }
    at = at.next_multiple_of(ALIGNED);
    for member in &mut members {
        if let Some(lora) = linears[member.linear].lora() {
            member.b = at;
            sources.push((at, lora.b.as_tensor().clone()));
            at += member.width * member.rank;
        }
    }
    *len = at;
    Ok((begin, members, low))
}
