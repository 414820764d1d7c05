//! Keys of values.

use std::{fmt, marker::PhantomData};

/// The key of a value of type `T`.
///
/// ```
/// use tower_keep::{Key, Session, SessionError};
///
/// const CART: Key<Vec<u64>> = Key::new("cart");
///
/// fn add_to_cart(session: &Session, item: u64) -> Result<(), SessionError> {
///     let mut cart = session.get(CART)?.unwrap_or_default();
///     cart.push(item);
///     session.insert(CART, &cart)
/// }
/// # let _ = add_to_cart;
/// ```
pub struct Key<T: ?Sized> {
    name: &'static str,
    of: PhantomData<fn(&T)>,
}

impl<T: ?Sized> Key<T> {
    /// A key with this name. Keys with the same name are equal.
    pub const fn new(name: &'static str) -> Self {
        Self { name, of: PhantomData }
    }
}

/// The key of a value: a [`Key`] or a string. This trait is sealed.
///
/// ```
/// use tower_keep::{AsKey, Key};
///
/// const CART: Key<u64> = Key::new("cart");
/// assert_eq!(CART.name(), "cart".name());
/// ```
pub trait AsKey: sealed::Sealed {
    /// The name.
    fn name(&self) -> &str;
}

/// The key of a value of type `T`. A string can be the key of any type.
///
/// ```
/// use tower_keep::{Key, KeyOf};
///
/// fn takes(_: impl KeyOf<u64>) {}
/// takes(Key::<u64>::new("cart"));
/// takes("cart");
/// ```
pub trait KeyOf<T: ?Sized>: AsKey {}

/// A key under which a `V` can be stored: a [`KeyOf`] for `V`; for a `Key<String>` also a `str`, and for a `Key<Vec<T>>` also a
/// slice.
///
/// ```
/// use tower_keep::{Key, Session, SessionError};
///
/// const NOTICE: Key<String> = Key::new("notice");
///
/// fn saved(session: &Session) -> Result<(), SessionError> {
///     session.insert(NOTICE, "Your changes are saved.")
/// }
/// # let _ = saved;
/// ```
pub trait KeyFor<V: ?Sized>: AsKey {}

impl<T: ?Sized> AsKey for Key<T> {
    fn name(&self) -> &str {
        self.name
    }
}

impl AsKey for str {
    fn name(&self) -> &str {
        self
    }
}

impl AsKey for String {
    fn name(&self) -> &str {
        self
    }
}

impl<K: AsKey + ?Sized> AsKey for &K {
    fn name(&self) -> &str {
        (**self).name()
    }
}

impl<T: ?Sized> KeyOf<T> for Key<T> {}
impl<T: ?Sized> KeyOf<T> for str {}
impl<T: ?Sized> KeyOf<T> for String {}
impl<T: ?Sized, K: KeyOf<T> + ?Sized> KeyOf<T> for &K {}

impl<T: ?Sized> KeyFor<T> for Key<T> {}
impl KeyFor<str> for Key<String> {}
impl<T> KeyFor<[T]> for Key<Vec<T>> {}
impl<V: ?Sized> KeyFor<V> for str {}
impl<V: ?Sized> KeyFor<V> for String {}
impl<V: ?Sized, K: KeyFor<V> + ?Sized> KeyFor<V> for &K {}

mod sealed {
    pub trait Sealed {}
    impl<T: ?Sized> Sealed for super::Key<T> {}
    impl Sealed for str {}
    impl Sealed for String {}
    impl<K: Sealed + ?Sized> Sealed for &K {}
}

impl<T: ?Sized> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Key<T> {}

impl<T: ?Sized> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.name).finish()
    }
}
