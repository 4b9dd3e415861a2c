//! Provides the coding of a frame's tokens and rows, one after another: the row that describes a token, then the token.

use super::{
    entropy::{Coder, Decoder, Number, bit_length},
    header::{Header, StatisticsCoding},
    ids::{IdModel, split},
    statistics::{Fixed, StatisticsModel},
    tokens::TokenModel,
    values::{Grid, Weights},
};
use crate::{Error, Estimator, Frame, Result};

/// Contexts of a row's largest code: quarters of octaves.
const SPANS: usize = 68;
/// Where an id comes from; see `ids`.
const SOURCES: usize = 3;
const COUNT_CONTEXTS: usize = 34;

/// An entry of a row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    pub id: u32,
    pub code: u32,
    pub count: u32,
}

/// Models of everything that is coded for a row and its token.
struct RowModel {
    estimator: Estimator,
    k: usize,
    code_max: u32,
    width: Number,
    ids: IdModel,
    largest: Number,
    below: Number,
    counts: Number,
    statistics: StatisticsModel,
    tokens: TokenModel,
    largest_before: u32,
    // Reused from row to row.
    found: Vec<u64>,
    ids_of_row: Vec<u32>,
}

impl RowModel {
    fn new(header: &Header, encodes: bool) -> Self {
        let vocabulary = if encodes { header.vocab_size } else { 0 };
        Self {
            estimator: header.estimator,
            k: header.k as usize,
            code_max: Grid::code_max(header.coding),
            width: Number::new(1, 1),
            ids: IdModel::new(vocabulary as usize),
            largest: Number::new(18, 18),
            below: Number::new(SPANS * SOURCES, SPANS),
            counts: Number::new(COUNT_CONTEXTS, COUNT_CONTEXTS),
            statistics: StatisticsModel::new(header.temperatures.len()),
            tokens: TokenModel::new(),
            largest_before: 0,
            found: Vec::new(),
            ids_of_row: Vec::new(),
        }
    }

    /// Codes the entries of the row after `token`, padding left out. `entries` are an encoder's, and a decoder's result.
    /// `false`: no encoder wrote this.
    fn code_entries<C: Coder>(
        &mut self,
        coder: &mut C,
        token: u32,
        entries: &mut Vec<Entry>,
    ) -> bool {
        let width = match self.estimator.is_drawn() {
            false => self.k,
            true => 1 + self.width.code(coder, 0, 0, || entries.len() as u32 - 1) as usize,
        };
        if width > self.k {
            return false;
        }
        self.ids_of_row.clear();
        self.ids_of_row.extend(entries.iter().map(|entry| entry.id));
        if !self
            .ids
            .code_row(coder, token, width, &self.ids_of_row, &mut self.found)
        {
            return false;
        }
        entries.resize(width, Entry::default());
        let context = bit_length(self.largest_before).min(17) as usize;
        let largest = entries
            .iter()
            .map(|entry| entry.code)
            .max()
            .unwrap_or_default();
        let largest = self.largest.code(coder, context, context, || largest);
        if largest > self.code_max {
            return false;
        }
        self.largest_before = largest;
        let span = span(largest);
        for (entry, &found) in entries.iter_mut().zip(&self.found) {
            let (id, source) = split(found);
            let context = span * SOURCES + source;
            let code = entry.code;
            let below = self.below.code(coder, context, span, || largest - code);
            let Some(code) = largest.checked_sub(below) else {
                return false;
            };
            let mut count = 0;
            if self.estimator.is_drawn() {
                let context = (span_of(code) / 2).min(COUNT_CONTEXTS - 1);
                let known = entry.count;
                count = self.counts.code(coder, context, context, || known);
            }
            *entry = Entry { id, code, count };
        }
        true
    }
}

/// Quarters of octaves.
fn span_of(code: u32) -> usize {
    let code = u64::from(code) + 1;
    let log = code.ilog2();
    (4 * log + (code << 2 >> log & 3) as u32) as usize
}

fn span(largest: u32) -> usize {
    span_of(largest).min(SPANS - 1)
}

/// Writes what a frame's coded part holds. `codes` are of all entries, `fixed` of all rows or of none.
pub(super) fn encode<C: Coder>(
    coder: &mut C,
    frame: &Frame,
    header: &Header,
    codes: &[u32],
    fixed: &[Fixed],
) {
    let mut model = RowModel::new(header, true);
    let rows = &frame.rows;
    let mut row = 0;
    let (mut before, mut end) = (0, 0);
    let mut entries = Vec::new();
    let places = frame
        .token_ids
        .iter()
        .zip(&frame.byte_offsets)
        .zip(&frame.target_mask);
    for (place, ((&token, &range), &target)) in places.enumerate() {
        entries.clear();
        if target {
            let range = row * rows.k..(row + 1) * rows.k;
            let ids = rows.ids.get(range.clone()).unwrap_or_default();
            let codes = codes.get(range.clone()).unwrap_or_default();
            let counts = rows.counts.get(range).unwrap_or_default().iter().map(Some);
            let numbered = ids
                .iter()
                .zip(codes)
                .zip(counts.chain(std::iter::repeat(None)));
            entries.extend(numbered.filter_map(|((&id, &code), count)| {
                let count = count.copied().unwrap_or_default();
                (rows.counts.is_empty() || !rows.estimator.is_padding(count)).then_some(Entry {
                    id,
                    code,
                    count,
                })
            }));
            model.code_entries(coder, before, &mut entries);
            if let Some(fixed) = fixed.get(row) {
                model
                    .statistics
                    .code(coder, model.largest_before, Some(fixed));
            }
            row += 1;
        }
        let known = frame.token_ids.get(..place).unwrap_or_default();
        model.tokens.code_id(coder, &entries, known, token);
        model
            .tokens
            .code_range(coder, place as u32, token, end, range);
        (before, end) = (token, range.1);
    }
}

/// What a frame's coded part holds: all of a frame but for what is in the planes. Codes take the place of logits.
pub(super) struct Coded {
    pub token_ids: Vec<u32>,
    pub byte_offsets: Vec<(u32, u32)>,
    pub ids: Vec<u32>,
    pub codes: Vec<u32>,
    pub counts: Vec<u32>,
    pub max: Vec<f32>,
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    pub logsumexp: Vec<Vec<f32>>,
}

/// Reads what [`encode`] wrote. Memory grows with what is read.
///
/// # Errors
/// `Entropy`.
pub(super) fn decode(bytes: &[u8], header: &Header, mask: &[bool], grid: &Grid) -> Result<Coded> {
    let index = header.index;
    let mut coder = Decoder::new(bytes, index)?;
    let weights = grid.weights(header.temperatures.first().copied().unwrap_or(1.0));
    let mut model = RowModel::new(header, false);
    let mut coded = Coded::new(header);
    let (mut before, mut end) = (0, 0);
    let mut entries = Vec::new();
    for (place, &target) in mask.iter().enumerate() {
        entries.clear();
        if target {
            if !model.code_entries(&mut coder, before, &mut entries) {
                coder.check(index)?;
                return Err(Error::Entropy {
                    index,
                    reason: "a row holds what cannot be",
                });
            }
            coded.push_row(&mut coder, &mut model, header, &entries, &weights);
        }
        let token = model
            .tokens
            .code_id(&mut coder, &entries, &coded.token_ids, 0);
        let range = model
            .tokens
            .code_range(&mut coder, place as u32, token, end, (0, 0));
        coder.check(index)?;
        coded.token_ids.push(token);
        coded.byte_offsets.push(range);
        (before, end) = (token, range.1);
    }
    coder.finish(index)?;
    Ok(coded)
}

impl Coded {
    fn new(header: &Header) -> Self {
        Self {
            token_ids: Vec::new(),
            byte_offsets: Vec::new(),
            ids: Vec::new(),
            codes: Vec::new(),
            counts: Vec::new(),
            max: Vec::new(),
            mean: Vec::new(),
            std: Vec::new(),
            logsumexp: vec![Vec::new(); header.temperatures.len()],
        }
    }

    /// Takes a row's entries with padding, and its statistics where they are coded.
    fn push_row(
        &mut self,
        coder: &mut Decoder<'_>,
        model: &mut RowModel,
        header: &Header,
        entries: &[Entry],
        weights: &Weights<'_>,
    ) {
        let k = header.k as usize;
        let padding = header.estimator.padding_count().unwrap_or_default();
        if entries.len() == k {
            self.ids.extend(entries.iter().map(|entry| entry.id));
            self.codes.extend(entries.iter().map(|entry| entry.code));
            if header.estimator.is_drawn() {
                self.counts.extend(entries.iter().map(|entry| entry.count));
            }
        } else {
            self.push_padded(header, entries, padding);
        }
        if header.statistics == StatisticsCoding::Fixed {
            let row = model.statistics.code(coder, model.largest_before, None);
            let codes = entries.iter().map(|entry| entry.code);
            let found = row.decode(weights, codes, &header.temperatures, &mut self.logsumexp);
            self.max.push(found.max);
            self.mean.push(found.mean);
            self.std.push(found.std);
        }
    }

    /// Takes entries with what fills them up: the smallest ids that the row does not use, at the maximum.
    fn push_padded(&mut self, header: &Header, entries: &[Entry], count: u32) {
        let mut fill = (header.k as usize).saturating_sub(entries.len());
        let mut next = 0u32;
        for entry in entries {
            while fill > 0 && next < entry.id {
                self.push(Entry {
                    id: next,
                    code: 0,
                    count,
                });
                (fill, next) = (fill - 1, next + 1);
            }
            self.push(*entry);
            next = entry.id.saturating_add(1);
        }
        for id in (next..).take(fill) {
            self.push(Entry { id, code: 0, count });
        }
    }

    fn push(&mut self, entry: Entry) {
        self.ids.push(entry.id);
        self.codes.push(entry.code);
        self.counts.push(entry.count);
    }
}
