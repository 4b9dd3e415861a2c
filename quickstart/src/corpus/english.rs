//! Provides the English words and sentences.

use super::{
    template::{Clause, Setting},
    wording::{Thing, Words},
};

pub(super) static WORDS: Words = Words {
    people: &[
        "Mia", "Tom", "Lena", "Omar", "Ruth", "Ivan", "Nora", "Paul", "Zoe", "Finn", "Clara",
        "Hugo",
    ],
    things: &[
        thing("pen", "pens"),
        thing("book", "books"),
        thing("card", "cards"),
        thing("cup", "cups"),
        thing("stamp", "stamps"),
        thing("ball", "balls"),
        thing("shell", "shells"),
        thing("cookie", "cookies"),
        thing("button", "buttons"),
        thing("candle", "candles"),
    ],
    places: &[
        "lake", "mill", "school", "farm", "bridge", "tower", "harbor", "market",
    ],
    vehicles: &["bus", "train", "truck", "boat", "car", "tram"],
    mixtures: &[
        ["boys", "girls", "children"],
        ["cats", "dogs", "animals"],
        ["roses", "tulips", "flowers"],
        ["red beads", "blue beads", "beads"],
        ["small jars", "big jars", "jars"],
    ],
    fractions: ["half", "a third", "a quarter", "a fifth"],
    patterns,
    space: " ",
};

const fn thing(one: &'static str, many: &'static str) -> Thing {
    Thing {
        one,
        many,
        measure: "",
    }
}

fn patterns(setting: Setting, clause: Clause) -> &'static [&'static str] {
    use Clause::*;
    match (setting, clause) {
        (Setting::Stock, Start) => &[
            "{N} has {0} {o}.",
            "{N} starts with {0} {o}.",
            "At first {N} has {0} {o}.",
        ],
        (_, Boxes) => &[
            "{N} has {1} boxes with {0} {o} in each.",
            "{N} fills {1} boxes with {0} {o} each.",
        ],
        (_, Gain) => &[
            "{N} buys {0} more.",
            "Then {N} finds {0} more.",
            "{M} gives {N} {0} more.",
        ],
        (_, Lose) => &[
            "{N} gives {0} of them to {M}.",
            "Then {N} sells {0} of them.",
            "{N} loses {0} of them.",
        ],
        (_, AskNow) => &[
            "How many {o} does {N} have now?",
            "How many {o} does {N} have in the end?",
        ],
        (_, AskShare) => &[
            "{N} shares them equally among {0} friends. How many {o} does each friend get?",
            "They are packed into {0} equal bags. How many {o} are in each bag?",
        ],
        (Setting::Things, Start) => &["{N} has {0} {o}."],
        (Setting::Things, More) => &[
            "{N} has {0} more than {P}.",
            "{N} has {0} {o} more than {P}.",
        ],
        (Setting::Things, Fewer) => &[
            "{N} has {0} fewer than {P}.",
            "{N} has {0} {o} fewer than {P}.",
        ],
        (Setting::Things, Times) => &["{N} has {0} times as many as {P}."],
        (Setting::Things, Part) => &["{N} has {f} as many as {P}."],
        (Setting::Things, AskLast) => &["How many {o} does {N} have?"],
        (Setting::Things, AskTotal) => &[
            "How many {o} do they have together?",
            "How many {o} do they have in all?",
        ],
        (Setting::Ages, Start) => &["{N} is {0} years old."],
        (Setting::Ages, More) => &["{N} is {0} years older than {P}."],
        (Setting::Ages, Fewer) => &["{N} is {0} years younger than {P}."],
        (Setting::Ages, Times) => &["{N} is {0} times as old as {P}."],
        (Setting::Ages, Part) => &["{N} is {f} as old as {P}."],
        (Setting::Ages, AskLast) => &["How old is {N}?", "What is the age of {N}?"],
        (Setting::Ages, AskTotal) => &["How old are they together?", "What are their ages in all?"],
        (_, AskLater) => &[
            "How old will {N} be in {0} years?",
            "What will be the age of {N} in {0} years?",
        ],
        (Setting::Prices, Start) => &[
            "A {N} costs {0} dollars.",
            "The price of a {N} is {0} dollars.",
        ],
        (Setting::Prices, More) => &["A {N} costs {0} dollars more than a {P}."],
        (Setting::Prices, Fewer) => &["A {N} costs {0} dollars less than a {P}."],
        (Setting::Prices, Times) => &["A {N} costs {0} times as much as a {P}."],
        (Setting::Prices, Part) => &["A {N} costs {f} as much as a {P}."],
        (Setting::Prices, AskLast) => &["How much does a {N} cost?", "What is the price of a {N}?"],
        (Setting::Prices, AskTotal) => &[
            "How much do they cost together?",
            "How much do they cost in all?",
        ],
        (Setting::Ways, Start) => &["The way to the {N} is {0} km long."],
        (Setting::Ways, More) => &["The way to the {N} is {0} km longer than the way to the {P}."],
        (Setting::Ways, Fewer) => {
            &["The way to the {N} is {0} km shorter than the way to the {P}."]
        }
        (Setting::Ways, Times) => {
            &["The way to the {N} is {0} times as long as the way to the {P}."]
        }
        (Setting::Ways, Part) => &["The way to the {N} is {f} as long as the way to the {P}."],
        (Setting::Ways, AskLast) => &[
            "How long is the way to the {N}?",
            "How many km is the way to the {N}?",
        ],
        (Setting::Ways, AskTotal) => &[
            "How long are they together?",
            "How many km are they in all?",
        ],
        (_, Buy) => &[
            "{N} buys {1} {o} at {0} dollars each.",
            "{N} buys {1} {o} for {0} dollars each.",
        ],
        (_, BuyToo) => &[
            "{N} also buys {1} {o} at {0} dollars each.",
            "{N} also buys {1} {o} for {0} dollars each.",
        ],
        (_, One) => &[
            "{N} also buys a {t} for {0} dollars.",
            "{N} also takes a {t} that costs {0} dollars.",
        ],
        (_, Coupon) => &[
            "A coupon takes {0} dollars off.",
            "The shop takes {0} dollars off.",
        ],
        (_, AskCost) => &["How much does {N} pay?", "How much does {N} pay in all?"],
        (_, AskChange) => &[
            "{N} pays with {0} dollars. How much change does {N} get?",
            "{N} had {0} dollars. How much money does {N} have now?",
        ],
        (_, AskSplit) => &[
            "The cost is shared equally among {0} friends. How much does each friend pay?",
            "{0} friends share the cost equally. How much does each friend pay?",
        ],
        (_, Drive) => &[
            "A {N} travels at {0} km per hour for {1} hours.",
            "A {N} goes {0} km each hour for {1} hours.",
        ],
        (_, DriveOn) => &[
            "Then it travels at {0} km per hour for {1} hours.",
            "Then it goes {0} km each hour for {1} hours.",
        ],
        (_, Further) => &[
            "Then it travels {0} km more.",
            "After that it goes {0} km more.",
        ],
        (_, Pace) => &[
            "A {N} travels {0} km in {1} hours.",
            "A {N} goes {0} km in {1} hours.",
        ],
        (_, Faster) => &[
            "A {N} is {0} km per hour faster.",
            "A {N} goes {0} km more each hour.",
        ],
        (_, AskFar) => &[
            "How far does it travel in all?",
            "How many km does it go in all?",
        ],
        (_, AskRemaining) => &[
            "The whole trip is {0} km. How many km are left?",
            "The whole way is {0} km long. How far is it to the end?",
        ],
        (_, AskRestSpeed) => &[
            "The whole trip is {0} km. The rest takes {1} hours. How many km does it go each hour then?",
            "The whole way is {0} km long. The rest takes {1} hours. What is the speed then?",
        ],
        (_, AskSpeed) => &[
            "What is the speed of the {N}?",
            "How many km does the {N} go each hour?",
        ],
        (_, AskFarIn) => &[
            "How far does the {N} travel in {0} hours?",
            "How many km does the {N} go in {0} hours?",
        ],
        (_, Ratio) => &[
            "The ratio of {p} to {q} is {0}:{1}.",
            "There are {p} and {q} in the ratio {0}:{1}.",
        ],
        (_, InAll) => &["There are {0} {b} in all.", "Together there are {0} {b}."],
        (_, FirstIs) => &["There are {0} {p}."],
        (_, SecondIs) => &["There are {0} {q}."],
        (_, AskFirst) => &["How many {p} are there?"],
        (_, AskSecond) => &["How many {q} are there?"],
        (_, AskBoth) => &[
            "How many {b} are there in all?",
            "How many {b} are there together?",
        ],
        // A start or comparison of a setting that has none; the tests tell every template.
        (_, Start | More | Fewer | Times | Part | AskLast | AskTotal) => &[""],
    }
}
