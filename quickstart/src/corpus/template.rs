/*! Provides the templates: what a problem tells, clause by clause, before it has numbers or a language.

Every clause of a held-out template also occurs in training templates of the same setting, so its words and its operation
are known and their arrangement is new.
*/

use Clause::*;
use Setting::*;

/// What a problem is about; it chooses the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Setting {
    /// One person's things come and go.
    Stock,
    /// Several people's things, compared.
    Things,
    /// Several people's ages, compared.
    Ages,
    /// Prices of several goods, compared.
    Prices,
    /// Lengths of several ways, compared.
    Ways,
    /// A purchase.
    Shop,
    /// A journey.
    Travel,
    /// A mixture in a ratio.
    Mixture,
}

/// One statement or question; its numbers are drawn when a story is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Clause {
    /// Somebody or something has a number.
    Start,
    /// So many in each of so many boxes.
    Boxes,
    /// So many are added.
    Gain,
    /// So many are taken away.
    Lose,
    /// How many there are now.
    AskNow,
    /// How many each gets of equal shares.
    AskShare,
    /// The next one has so many more than the one before.
    More,
    /// The next one has so many fewer than the one before.
    Fewer,
    /// The next one has so many times as much as the one before.
    Times,
    /// The next one has a half to a fifth of the one before.
    Part,
    /// What the last one has.
    AskLast,
    /// What all have together.
    AskTotal,
    /// What the last one has after so many years.
    AskLater,
    /// So many goods at a price.
    Buy,
    /// So many other goods at a price.
    BuyToo,
    /// One other thing at a price.
    One,
    /// So much off.
    Coupon,
    /// What all costs.
    AskCost,
    /// The change of a sum.
    AskChange,
    /// What each of several pays.
    AskSplit,
    /// So many hours at a speed.
    Drive,
    /// So many further hours at another speed.
    DriveOn,
    /// So far beyond.
    Further,
    /// So far in so many hours.
    Pace,
    /// Another that is faster by so much.
    Faster,
    /// How far in all.
    AskFar,
    /// What remains of a distance.
    AskRemaining,
    /// The speed on what remains of a distance.
    AskRestSpeed,
    /// The speed of the last one.
    AskSpeed,
    /// How far in so many hours at that speed.
    AskFarIn,
    /// Two kinds in a ratio.
    Ratio,
    /// So many of both kinds.
    InAll,
    /// So many of the first kind.
    FirstIs,
    /// So many of the second kind.
    SecondIs,
    /// How many of the first kind.
    AskFirst,
    /// How many of the second kind.
    AskSecond,
    /// How many of both kinds.
    AskBoth,
}

/// The order of clauses that makes a kind of problem.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template {
    pub id: &'static str,
    pub setting: Setting,
    pub clauses: &'static [Clause],
    /// Whether training never sees it.
    pub held_out: bool,
}

const fn train(id: &'static str, setting: Setting, clauses: &'static [Clause]) -> Template {
    Template {
        id,
        setting,
        clauses,
        held_out: false,
    }
}

const fn held_out(id: &'static str, setting: Setting, clauses: &'static [Clause]) -> Template {
    Template {
        id,
        setting,
        clauses,
        held_out: true,
    }
}

/// All templates; each is told in both languages.
pub(super) const TEMPLATES: &[Template] = &[
    train("stock-gain-lose", Stock, &[Start, Gain, Lose, AskNow]),
    train("stock-lose-gain", Stock, &[Start, Lose, Gain, AskNow]),
    train("stock-gain-gain", Stock, &[Start, Gain, Gain, AskNow]),
    train("stock-lose-lose", Stock, &[Start, Lose, Lose, AskNow]),
    train(
        "stock-lose-gain-lose",
        Stock,
        &[Start, Lose, Gain, Lose, AskNow],
    ),
    held_out(
        "stock-gain-lose-gain",
        Stock,
        &[Start, Gain, Lose, Gain, AskNow],
    ),
    train(
        "stock-gain-gain-lose",
        Stock,
        &[Start, Gain, Gain, Lose, AskNow],
    ),
    train("stock-gain-share", Stock, &[Start, Gain, AskShare]),
    train("stock-lose-share", Stock, &[Start, Lose, AskShare]),
    train(
        "stock-gain-lose-share",
        Stock,
        &[Start, Gain, Lose, AskShare],
    ),
    held_out(
        "stock-lose-gain-share",
        Stock,
        &[Start, Lose, Gain, AskShare],
    ),
    train("boxes-gain", Stock, &[Boxes, Gain, AskNow]),
    train("boxes-lose", Stock, &[Boxes, Lose, AskNow]),
    train("boxes-lose-gain", Stock, &[Boxes, Lose, Gain, AskNow]),
    held_out("boxes-gain-lose", Stock, &[Boxes, Gain, Lose, AskNow]),
    train("boxes-share", Stock, &[Boxes, AskShare]),
    train("boxes-lose-share", Stock, &[Boxes, Lose, AskShare]),
    train("things-more-times", Things, &[Start, More, Times, AskLast]),
    train(
        "things-times-fewer",
        Things,
        &[Start, Times, Fewer, AskLast],
    ),
    train("things-part-more", Things, &[Start, Part, More, AskLast]),
    train("things-fewer-part", Things, &[Start, Fewer, Part, AskLast]),
    train("things-more-total", Things, &[Start, More, AskTotal]),
    train("things-times-total", Things, &[Start, Times, AskTotal]),
    held_out("things-fewer-total", Things, &[Start, Fewer, AskTotal]),
    train(
        "things-more-fewer-total",
        Things,
        &[Start, More, Fewer, AskTotal],
    ),
    train("ages-more-times", Ages, &[Start, More, Times, AskLast]),
    train("ages-times-more", Ages, &[Start, Times, More, AskLast]),
    train("ages-fewer-part", Ages, &[Start, Fewer, Part, AskLast]),
    held_out("ages-times-fewer", Ages, &[Start, Times, Fewer, AskLast]),
    train("ages-times-later", Ages, &[Start, Times, AskLater]),
    train("ages-fewer-later", Ages, &[Start, Fewer, AskLater]),
    train("ages-fewer-total", Ages, &[Start, Fewer, AskTotal]),
    train("ages-part-total", Ages, &[Start, Part, AskTotal]),
    train("prices-times-more", Prices, &[Start, Times, More, AskLast]),
    train(
        "prices-fewer-times",
        Prices,
        &[Start, Fewer, Times, AskLast],
    ),
    train("prices-part-fewer", Prices, &[Start, Part, Fewer, AskLast]),
    train("prices-fewer-total", Prices, &[Start, Fewer, AskTotal]),
    train("prices-times-total", Prices, &[Start, Times, AskTotal]),
    held_out("prices-more-total", Prices, &[Start, More, AskTotal]),
    train(
        "prices-times-more-total",
        Prices,
        &[Start, Times, More, AskTotal],
    ),
    train("ways-more-fewer", Ways, &[Start, More, Fewer, AskLast]),
    train("ways-fewer-times", Ways, &[Start, Fewer, Times, AskLast]),
    train("ways-part-more", Ways, &[Start, Part, More, AskLast]),
    train("ways-more-total", Ways, &[Start, More, AskTotal]),
    train("ways-part-total", Ways, &[Start, Part, AskTotal]),
    held_out("ways-times-total", Ways, &[Start, Times, AskTotal]),
    train(
        "ways-times-fewer-total",
        Ways,
        &[Start, Times, Fewer, AskTotal],
    ),
    train("shop-one-cost", Shop, &[Buy, One, AskCost]),
    train("shop-coupon-cost", Shop, &[Buy, Coupon, AskCost]),
    train("shop-change", Shop, &[Buy, AskChange]),
    train("shop-two-cost", Shop, &[Buy, BuyToo, AskCost]),
    train("shop-one-change", Shop, &[Buy, One, AskChange]),
    held_out("shop-coupon-change", Shop, &[Buy, Coupon, AskChange]),
    train(
        "shop-one-coupon-change",
        Shop,
        &[Buy, One, Coupon, AskChange],
    ),
    train("shop-one-split", Shop, &[Buy, One, AskSplit]),
    held_out("shop-coupon-split", Shop, &[Buy, Coupon, AskSplit]),
    train("shop-one-coupon-split", Shop, &[Buy, One, Coupon, AskSplit]),
    train("travel-further", Travel, &[Drive, Further, AskFar]),
    train("travel-two-speeds", Travel, &[Drive, DriveOn, AskFar]),
    train("travel-remaining", Travel, &[Drive, AskRemaining]),
    held_out(
        "travel-further-remaining",
        Travel,
        &[Drive, Further, AskRemaining],
    ),
    train(
        "travel-two-speeds-remaining",
        Travel,
        &[Drive, DriveOn, AskRemaining],
    ),
    train("travel-rest-speed", Travel, &[Drive, AskRestSpeed]),
    train(
        "travel-further-rest-speed",
        Travel,
        &[Drive, Further, AskRestSpeed],
    ),
    train("travel-pace-far", Travel, &[Pace, AskFarIn]),
    train("travel-pace-faster", Travel, &[Pace, Faster, AskSpeed]),
    train("travel-pace-faster-far", Travel, &[Pace, Faster, AskFarIn]),
    train("ratio-all-first", Mixture, &[Ratio, InAll, AskFirst]),
    train("ratio-all-second", Mixture, &[Ratio, InAll, AskSecond]),
    train("ratio-first-second", Mixture, &[Ratio, FirstIs, AskSecond]),
    train("ratio-second-first", Mixture, &[Ratio, SecondIs, AskFirst]),
    train("ratio-first-both", Mixture, &[Ratio, FirstIs, AskBoth]),
    held_out("ratio-second-both", Mixture, &[Ratio, SecondIs, AskBoth]),
];
