//! Provides the words that a type can be written as, asked of its own deserialisation.

use serde::{
    Deserializer,
    de::{DeserializeOwned, Error as _, Visitor, value::Error},
    forward_to_deserialize_any,
};

/// The words of `T`, where it is one of a few; of an optional one those of what may be there. Empty for any other type.
pub fn words<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut words: &'static [&'static str] = &[];
    // Nothing is ever read.
    let _ = T::deserialize(Listener { words: &mut words });
    words
}

/// Has no value to give, and hears which words would have been taken.
struct Listener<'a> {
    words: &'a mut &'static [&'static str],
}

impl<'de> Deserializer<'de> for Listener<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("there is no value"))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.words = words;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::words;

    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Fruit {
        RedApple,
        Pear,
    }

    #[test]
    fn only_a_choice_has_words() {
        assert_eq!(words::<Fruit>(), ["red-apple", "pear"]);
        assert_eq!(words::<Option<Fruit>>(), ["red-apple", "pear"]);
        for none in [words::<String>(), words::<Vec<f32>>(), words::<bool>()] {
            assert!(none.is_empty(), "{none:?}");
        }
    }
}
