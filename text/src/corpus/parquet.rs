//! Provides the rows of a Parquet file as documents, a few at a time.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

use distill_program::{FileError, files};
use parquet::{
    basic::{ConvertedType, Repetition},
    errors::ParquetError,
    file::{
        reader::{FileReader, RowGroupReader},
        serialized_reader::SerializedFileReader,
    },
    record::{
        Field, Row,
        reader::{ReaderIter, TreeBuilder},
    },
    schema::types::{SchemaDescriptor, Type},
};

use super::{
    collector::Collector,
    document::{Document, EXPECTED, Form},
    guarded::guarded,
    pairs,
};
use crate::{
    Error, Result,
    json::{Json, Object},
    limits::{LINE_BYTES_MAX, PARQUET_DEPTH_MAX, PARQUET_METADATA_BYTES_MAX},
};

/// Values of a column that are decoded at a time; texts can be long, so fewer than the library's 1024.
const BATCH_ROWS: usize = 32;
/// Length of the metadata and `PAR1`, at the end of every file.
const FOOTER_BYTES: usize = 8;

/// Reads one file into the collector.
///
/// # Errors
/// `CorpusFile` where the file as a whole cannot be used, `CorpusRow` naming the row, counted from 1 as lines are.
pub(super) fn read(path: &Path, bytes: u64, collector: &mut Collector<'_>) -> Result<()> {
    let file = files::open(path)?;
    let broken = |reason: String| Error::CorpusFile {
        path: path.to_owned(),
        reason,
    };
    check_footer(&file, path, bytes)?;
    let reader = guarded(|| SerializedFileReader::new(file)).map_err(broken)?;
    let metadata = reader.metadata();
    let schema = projection(metadata.file_metadata().schema()).map_err(broken)?;
    let schema = Arc::new(SchemaDescriptor::new(Arc::new(schema)));
    // A damaged file may have any number here, also below zero.
    let groups = metadata.row_groups().iter();
    let counts = groups.map(|group| u64::try_from(group.num_rows()).unwrap_or_default());
    let count = counts.fold(0, u64::saturating_add);
    let mut progress = Share {
        bytes,
        rows: count,
        reported: 0,
    };
    let mut row = 0;
    for index in 0..metadata.num_row_groups() {
        let at = |row: u64, reason: String| Error::CorpusRow {
            path: path.to_owned(),
            row,
            reason,
        };
        let group = guarded(|| reader.get_row_group(index)).map_err(|e| at(row + 1, e))?;
        let mut rows = guarded(|| rows(&schema, group.as_ref())).map_err(|e| at(row + 1, e))?;
        // The library counts what it has read, so that a group that says it has more rows than it holds ends in an error.
        while let Some(next) = guarded(|| rows.next().transpose()).map_err(|e| at(row + 1, e))? {
            row += 1;
            let document = document(next).map_err(|e| at(row, e));
            let outcome = document.and_then(|document| {
                let outcome = collector.document(document);
                outcome.map_err(|e| e.of_document(|reason| at(row, reason)))
            });
            collector.skip_refused(outcome)?;
            collector.advance(progress.until(row));
        }
    }
    collector.advance(progress.rest());
    Ok(())
}

/// The file's length shared out among its rows.
struct Share {
    bytes: u64,
    rows: u64,
    reported: u64,
}

impl Share {
    /// Bytes to report when `row` rows are done.
    fn until(&mut self, row: u64) -> u64 {
        let until =
            u128::from(self.bytes) * u128::from(row.min(self.rows)) / u128::from(self.rows.max(1));
        let until = u64::try_from(until).unwrap_or(self.bytes);
        until - std::mem::replace(&mut self.reported, until)
    }

    fn rest(&mut self) -> u64 {
        self.bytes - std::mem::replace(&mut self.reported, self.bytes)
    }
}

/// Refuses a file without the end that every Parquet file has, or with metadata beyond the limit.
fn check_footer(mut file: &File, path: &Path, bytes: u64) -> Result<()> {
    let broken = |reason: String| Error::CorpusFile {
        path: path.to_owned(),
        reason,
    };
    let footer_bytes = FOOTER_BYTES as u64;
    if bytes < 2 * footer_bytes {
        return Err(broken(format!("{bytes} bytes are no Parquet file")));
    }
    let mut footer = [0; FOOTER_BYTES];
    file.seek(SeekFrom::Start(bytes - footer_bytes))
        .and_then(|_| file.read_exact(&mut footer))
        .map_err(FileError::at("read", path))?;
    let [a, b, c, d, magic @ ..] = footer;
    if &magic != b"PAR1" {
        return Err(broken(
            "does not end as a Parquet file does; it is cut off, encrypted or something else"
                .to_owned(),
        ));
    }
    let metadata = u32::from_le_bytes([a, b, c, d]);
    if u64::from(metadata) > PARQUET_METADATA_BYTES_MAX {
        return Err(broken(format!(
            "{metadata} bytes of metadata are above the limit of {PARQUET_METADATA_BYTES_MAX}"
        )));
    }
    Ok(())
}

fn rows(
    schema: &Arc<SchemaDescriptor>,
    group: &dyn RowGroupReader,
) -> std::result::Result<ReaderIter, ParquetError> {
    TreeBuilder::new()
        .with_batch_size(BATCH_ROWS)
        .as_iter(schema.clone(), group)
}

/// The part of the file's schema that any form of a row is made of; which form a row has, its nulls say.
fn projection(schema: &Type) -> std::result::Result<Type, String> {
    let columns = schema.get_fields().iter();
    let names: Vec<&str> = columns.clone().map(|field| field.name()).collect();
    let first = Form::of(|name| names.contains(&name));
    let sides = columns
        .clone()
        .filter(|field| pairs::SIDES.contains(&field.name()) && !field.is_primitive());
    let is_pair = sides.count() == pairs::SIDES.len();
    if first.is_none() && !is_pair {
        let found = names.get(..8).unwrap_or(&names);
        return Err(format!("{EXPECTED}, found the columns {found:?}"));
    }
    let mut fields = Vec::new();
    for field in columns {
        let is_read = |form: &Form| form.fields().contains(&field.name());
        let is_of_pair = pairs::FIELDS.contains(&field.name());
        if !is_of_pair && !Form::ALL.iter().any(is_read) {
            continue;
        }
        if names.iter().filter(|&&name| name == field.name()).count() > 1 {
            return Err(format!("has two columns `{}`", field.name()));
        }
        let is_needed = first.as_ref().is_some_and(is_read) || (is_pair && is_of_pair);
        match check_type(field, 0) {
            Ok(()) => fields.push(field.clone()),
            Err(reason) if is_needed => {
                return Err(format!("column `{}`: {reason}", field.name()));
            }
            // What neither a pair nor the first form needs is no reason to refuse the file.
            Err(_) => {}
        }
    }
    let group = Type::group_type_builder(schema.name())
        .with_fields(fields)
        .build();
    group.map_err(|e| format!("Parquet: {e}"))
}

/// Accepts the shapes that the record reader knows: values, structs, lists and maps as the format defines them.
fn check_type(field: &Type, depth: usize) -> std::result::Result<(), String> {
    if depth > PARQUET_DEPTH_MAX {
        return Err(format!("is nested more than {PARQUET_DEPTH_MAX} deep"));
    }
    if field.is_primitive() {
        return Ok(());
    }
    let inner = field.get_fields();
    let repeated = |field: &Type| {
        field.get_basic_info().has_repetition()
            && field.get_basic_info().repetition() == Repetition::REPEATED
    };
    let fine = match (field.get_basic_info().converted_type(), inner) {
        (_, []) => false,
        (ConvertedType::LIST, [only]) => repeated(only),
        (ConvertedType::LIST, _) => false,
        (ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE, [only]) => {
            repeated(only) && !only.is_primitive() && (1..=2).contains(&only.get_fields().len())
        }
        (ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE, _) => false,
        _ => true,
    };
    if !fine {
        return Err(
            "is a list or map of a shape that the Parquet format does not define".to_owned(),
        );
    }
    inner
        .iter()
        .try_for_each(|field| check_type(field, depth + 1))
}

fn document(row: Row) -> std::result::Result<Document, String> {
    let mut room = LINE_BYTES_MAX;
    let columns = row.into_columns();
    let there = |name: &str| {
        let mut columns = columns.iter();
        columns.any(|(column, field)| column == name && !matches!(field, Field::Null))
    };
    let form = Form::of(there);
    if form.is_none() && !pairs::FIELDS.into_iter().any(there) {
        return Err(format!("{EXPECTED}, but all of them are null"));
    }
    let is_read = |name: &str| form.is_some_and(|form| form.fields().contains(&name));
    let mut fields = Object::new();
    for (name, field) in columns.iter().filter(|(name, _)| is_read(name)) {
        let value = json(field, &mut room);
        let value = value.map_err(|reason| format!("column `{name}` {reason}"))?;
        fields.insert(name.clone(), value);
    }
    let of_pair = |name: &str| pairs::FIELDS.contains(&name);
    for (name, field) in columns.iter().filter(|(name, _)| of_pair(name)) {
        // In an ordinary row it is somebody's column of the same name.
        let unusable = "a value that is no text, list or struct, or too long";
        let value = json(field, &mut room).unwrap_or(Json::Unusable(unusable));
        fields.insert(name.clone(), value);
    }
    Document::of_fields(fields)
}

/// A value as JSON has it. Nulls of a struct are left out: a column has every key, a line of JSONL only those in use.
fn json(field: &Field, room: &mut usize) -> std::result::Result<Json, String> {
    Ok(match field {
        Field::Null => Json::Null,
        Field::Bool(value) => Json::Bool(*value),
        Field::Byte(value) => Json::Integer((*value).into()),
        Field::Short(value) => Json::Integer((*value).into()),
        Field::Int(value) => Json::Integer((*value).into()),
        Field::Long(value) => Json::Integer(*value),
        Field::UByte(value) => Json::Integer((*value).into()),
        Field::UShort(value) => Json::Integer((*value).into()),
        Field::UInt(value) => Json::Integer((*value).into()),
        Field::ULong(value) => i64::try_from(*value)
            .map_or_else(|_| Json::LongInteger(value.to_string()), Json::Integer),
        Field::Float(value) => Json::Float(f64::from(*value)),
        Field::Double(value) => Json::Float(*value),
        Field::Str(text) => bounded(text, room)?.into(),
        // Old writers leave out that bytes are a text.
        Field::Bytes(bytes) => match bytes.as_utf8() {
            Ok(text) => bounded(text, room)?.into(),
            Err(_) => return Err("has bytes that are no UTF-8".to_owned()),
        },
        Field::Group(row) => {
            let mut fields = Object::new();
            for (name, field) in row.get_column_iter() {
                match json(field, room)? {
                    Json::Null => {}
                    value => {
                        fields.insert(name.clone(), value);
                    }
                }
            }
            Json::Object(fields)
        }
        Field::ListInternal(list) => {
            let elements = list.elements().iter().map(|field| json(field, room));
            Json::Array(elements.collect::<std::result::Result<_, _>>()?)
        }
        other => {
            return Err(format!(
                "has a value that is no text, list or struct: {other}"
            ));
        }
    })
}

fn bounded<'a>(text: &'a str, room: &mut usize) -> std::result::Result<&'a str, String> {
    match room.checked_sub(text.len()) {
        Some(left) => {
            *room = left;
            Ok(text)
        }
        None => Err(format!("makes the row longer than {LINE_BYTES_MAX} bytes")),
    }
}

#[cfg(test)]
#[path = "parquet_tests.rs"]
mod tests;
