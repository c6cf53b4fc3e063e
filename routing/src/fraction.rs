//! Exact parts of a whole.

/// A number from 0 to 1, in lowest terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fraction {
    numerator: u128,
    denominator: u128,
}

pub(crate) const fn greatest_common_divisor(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Fractions whose denominator would grow past this are rounded to it: no table of slots could tell the difference.
const FINEST: u128 = 1 << 30;

impl Fraction {
    pub(crate) const ONE: Self = Self { numerator: 1, denominator: 1 };

    /// `numerator / denominator`; `denominator` is at least one and not below `numerator`.
    pub(crate) fn new(numerator: u128, denominator: u128) -> Self {
        let divisor = greatest_common_divisor(numerator, denominator).max(1);
        let (numerator, denominator) = (numerator / divisor, (denominator / divisor).max(1));
        if denominator <= FINEST {
            return Self { numerator, denominator };
        }
        // Both are products of two numbers of at most 2^30 or counts below 2^64, so this cannot overflow.
        let rounded = ((numerator * FINEST + denominator / 2) / denominator).max(u128::from(numerator > 0));
        let divisor = greatest_common_divisor(rounded, FINEST).max(1);
        Self { numerator: rounded / divisor, denominator: FINEST / divisor }
    }

    pub(crate) fn times(self, other: Self) -> Self {
        Self::new(self.numerator * other.numerator, self.denominator * other.denominator)
    }

    pub(crate) fn is_zero(self) -> bool {
        self.numerator == 0
    }

    /// Whole numbers in the proportion of `fractions`, as small as they can be; all together below 2^32. What is above
    /// zero stays above zero.
    pub(crate) fn proportions(fractions: &[Self]) -> impl Iterator<Item = u64> {
        const MOST: u128 = u32::MAX as u128;
        let mut common = 1u128;
        for fraction in fractions {
            let divisor = greatest_common_divisor(common, fraction.denominator);
            common = common / divisor * fraction.denominator;
            if common > MOST {
                common = FINEST;
                break;
            }
        }
        let whole = move |fraction: &Self| {
            let exact = fraction.numerator * common / fraction.denominator;
            if fraction.is_zero() { 0 } else { exact.max(1) }
        };
        let divisor = fractions.iter().map(whole).fold(0, greatest_common_divisor).max(1);
        fractions.iter().map(move |fraction| u64::try_from(whole(fraction) / divisor).unwrap_or(u64::MAX))
    }
}
