//! Provides buffers that are used again: fresh memory costs a visit of the system for every page of it.

/// Buffers kept at most; more than one layer's pass has in use at a time.
const KEPT_MAX: usize = 24;

/// Buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    free: Vec<Vec<f32>>,
}

impl Workspace {
    /// A buffer of `len` numbers, whatever they are: the smallest free one that is large enough, or a new one.
    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
        let fitting = self.free.iter().enumerate();
        let fitting = fitting.filter(|(_, buffer)| buffer.capacity() >= len);
        let smallest = fitting.min_by_key(|(_, buffer)| buffer.capacity());
        // A much larger one may be asked for next.
        let found = smallest.filter(|(_, buffer)| buffer.capacity() / 2 <= len);
        match found.map(|(index, _)| index) {
            None => vec![0.0; len],
            Some(index) => {
                let mut buffer = self.free.swap_remove(index);
                buffer.resize(len, 0.0);
                buffer
            }
        }
    }

    /// Takes a buffer back.
    pub(crate) fn give(&mut self, buffer: Vec<f32>) {
        if self.free.len() < KEPT_MAX {
            self.free.push(buffer);
        }
    }

    /// Takes buffers back.
    pub(crate) fn give_all<const COUNT: usize>(&mut self, buffers: [Vec<f32>; COUNT]) {
        buffers.into_iter().for_each(|buffer| self.give(buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::Workspace;

    #[test]
    fn buffers_come_back_where_they_fit() {
        let mut space = Workspace::default();
        let buffer = vec![1.0; 100];
        let address = buffer.as_ptr();
        space.give(buffer);
        assert_eq!(space.take(10).len(), 10);
        let again = space.take(60);
        assert_eq!((again.len(), again.as_ptr()), (60, address));
        let other = space.take(60);
        assert_ne!(other.as_ptr(), address);
    }
}
