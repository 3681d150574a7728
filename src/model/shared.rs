//! What models in memory have in common: it is made once, and stays for as long as one of them does. It must
//! not know what that is.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Values by what they are made of; clones are the same one.
pub(super) struct Shared<Source, Value>(Arc<Mutex<HashMap<Source, Weak<Value>>>>);

impl<Source: Eq + Hash, Value> Shared<Source, Value> {
    /// The value that is made of `source`: that of another model in memory, or else a new one.
    pub(super) fn get(&self, source: Source, make: impl FnOnce() -> Value) -> Arc<Value> {
        let all = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = all().get(&source).and_then(Weak::upgrade) {
            return found;
        }
        let made = Arc::new(make());
        let mut all = all();
        all.retain(|_, value| value.strong_count() > 0);
        all.insert(source, Arc::downgrade(&made));
        made
    }
}

impl<Source, Value> Default for Shared<Source, Value> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<Source, Value> Clone for Shared<Source, Value> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_of_the_same_is_made_once_while_it_is_in_use() {
        let shared = Shared::default();
        let first = shared.get("weights", || 1);
        assert!(Arc::ptr_eq(&first, &shared.clone().get("weights", || 2)));
        assert_eq!(*shared.get("others", || 3), 3);
        drop(first);
        assert_eq!(*shared.get("weights", || 4), 4);
    }
}
