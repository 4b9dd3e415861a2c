//! Provides the Chinese words and sentences.

use super::{
    template::{Clause, Setting},
    wording::{Thing, Words},
};

pub(super) static WORDS: Words = Words {
    people: &[
        "小明", "小红", "小刚", "小丽", "小华", "小芳", "小军", "小云", "小亮", "小雨",
    ],
    things: &[
        thing("苹果", "个"),
        thing("鸡蛋", "个"),
        thing("杯子", "个"),
        thing("贴纸", "张"),
        thing("卡片", "张"),
        thing("书", "本"),
        thing("本子", "本"),
        thing("铅笔", "支"),
        thing("珠子", "颗"),
        thing("糖", "颗"),
    ],
    places: &[
        "学校", "公园", "车站", "工厂", "码头", "农场", "市场", "医院",
    ],
    vehicles: &["汽车", "火车", "货车", "轮船", "电车", "客车"],
    mixtures: &[
        ["男生", "女生", "学生"],
        ["白兔", "黑兔", "兔子"],
        ["红花", "黄花", "花"],
        ["大盒", "小盒", "盒子"],
        ["松树", "柳树", "树"],
    ],
    fractions: ["一半", "三分之一", "四分之一", "五分之一"],
    patterns,
    space: "",
};

const fn thing(word: &'static str, measure: &'static str) -> Thing {
    Thing {
        one: word,
        many: word,
        measure,
    }
}

fn patterns(setting: Setting, clause: Clause) -> &'static [&'static str] {
    use Clause::*;
    match (setting, clause) {
        (Setting::Stock, Start) => &[
            "{N}有{0}{c}{o}。",
            "{N}原来有{0}{c}{o}。",
            "{N}一开始有{0}{c}{o}。",
        ],
        (_, Boxes) => &[
            "{N}有{1}盒{o}，每盒{0}{c}。",
            "{N}装了{1}盒{o}，每盒{0}{c}。",
        ],
        (_, Gain) => &[
            "又买了{0}{c}。",
            "后来又得到{0}{c}。",
            "{M}又送给{N}{0}{c}。",
        ],
        (_, Lose) => &["送给{M}{0}{c}。", "后来卖掉{0}{c}。", "{N}弄丢了{0}{c}。"],
        (_, AskNow) => &["{N}现在有多少{c}{o}？", "最后{N}有多少{c}{o}？"],
        (_, AskShare) => &[
            "平均分给{0}个朋友，每个朋友分到多少{c}{o}？",
            "平均装进{0}个袋子，每个袋子有多少{c}{o}？",
        ],
        (Setting::Things, Start) => &["{N}有{0}{c}{o}。"],
        (Setting::Things, More) => &["{N}比{P}多{0}{c}。", "{N}的{o}比{P}多{0}{c}。"],
        (Setting::Things, Fewer) => &["{N}比{P}少{0}{c}。", "{N}的{o}比{P}少{0}{c}。"],
        (Setting::Things, Times) => &["{N}的{o}是{P}的{0}倍。"],
        (Setting::Things, Part) => &["{N}的{o}是{P}的{f}。"],
        (Setting::Things, AskLast) => &["{N}有多少{c}{o}？"],
        (Setting::Things, AskTotal) => &["他们一共有多少{c}{o}？", "他们共有多少{c}{o}？"],
        (Setting::Ages, Start) => &["{N}今年{0}岁。"],
        (Setting::Ages, More) => &["{N}比{P}大{0}岁。"],
        (Setting::Ages, Fewer) => &["{N}比{P}小{0}岁。"],
        (Setting::Ages, Times) => &["{N}的年龄是{P}的{0}倍。"],
        (Setting::Ages, Part) => &["{N}的年龄是{P}的{f}。"],
        (Setting::Ages, AskLast) => &["{N}今年多少岁？", "{N}的年龄是多少岁？"],
        (Setting::Ages, AskTotal) => &["他们一共多少岁？", "他们的年龄一共是多少岁？"],
        (_, AskLater) => &["再过{0}年{N}多少岁？", "{0}年后{N}的年龄是多少岁？"],
        (Setting::Prices, Start) => &["{N}的价钱是{0}元。", "买{N}要{0}元。"],
        (Setting::Prices, More) => &["{N}比{P}贵{0}元。"],
        (Setting::Prices, Fewer) => &["{N}比{P}便宜{0}元。"],
        (Setting::Prices, Times) => &["{N}的价钱是{P}的{0}倍。"],
        (Setting::Prices, Part) => &["{N}的价钱是{P}的{f}。"],
        (Setting::Prices, AskLast) => &["{N}的价钱是多少元？", "买{N}要多少元？"],
        (Setting::Prices, AskTotal) => &["它们一共多少元？", "它们的价钱一共是多少元？"],
        (Setting::Ways, Start) => &["到{N}的路长{0}千米。"],
        (Setting::Ways, More) => &["到{N}的路比到{P}的长{0}千米。"],
        (Setting::Ways, Fewer) => &["到{N}的路比到{P}的短{0}千米。"],
        (Setting::Ways, Times) => &["到{N}的路是到{P}的{0}倍。"],
        (Setting::Ways, Part) => &["到{N}的路是到{P}的{f}。"],
        (Setting::Ways, AskLast) => &["到{N}的路长多少千米？", "到{N}的路是多少千米？"],
        (Setting::Ways, AskTotal) => &["它们一共长多少千米？", "它们一共多少千米？"],
        (_, Buy) => &[
            "{N}买了{1}{c}{o}，每{c}{0}元。",
            "{N}买{1}{c}{o}，每{c}要{0}元。",
        ],
        (_, BuyToo) => &[
            "又买了{1}{c}{o}，每{c}{0}元。",
            "还买{1}{c}{o}，每{c}要{0}元。",
        ],
        (_, One) => &["又买了一{c}{o}，要{0}元。", "还买一{c}{0}元的{o}。"],
        (_, Coupon) => &["用优惠券减{0}元。", "店里便宜{0}元。"],
        (_, AskCost) => &["{N}要付多少元？", "{N}一共付多少元？"],
        (_, AskChange) => &[
            "{N}付了{0}元，找回多少元？",
            "{N}原来有{0}元，现在有多少元？",
        ],
        (_, AskSplit) => &[
            "{0}个朋友平均付钱，每个朋友付多少元？",
            "平均分给{0}个朋友付，每个朋友付多少元？",
        ],
        (_, Drive) => &[
            "{N}每小时行{0}千米，行了{1}小时。",
            "{N}以每小时{0}千米的速度行了{1}小时。",
        ],
        (_, DriveOn) => &[
            "后来每小时行{0}千米，行了{1}小时。",
            "又以每小时{0}千米的速度行了{1}小时。",
        ],
        (_, Further) => &["又行了{0}千米。", "后来又行{0}千米。"],
        (_, Pace) => &["{N}{1}小时行{0}千米。", "{N}行{0}千米要{1}小时。"],
        (_, Faster) => &["{N}每小时多行{0}千米。", "{N}的速度每小时快{0}千米。"],
        (_, AskFar) => &["一共行了多少千米？", "一共行多少千米？"],
        (_, AskRemaining) => &[
            "全程{0}千米，还剩多少千米？",
            "全程长{0}千米，还要行多少千米？",
        ],
        (_, AskRestSpeed) => &[
            "全程{0}千米，剩下的行了{1}小时，每小时行多少千米？",
            "全程长{0}千米，剩下的要{1}小时，速度是每小时多少千米？",
        ],
        (_, AskSpeed) => &["{N}每小时行多少千米？", "{N}的速度是每小时多少千米？"],
        (_, AskFarIn) => &["{N}{0}小时行多少千米？", "{N}行{0}小时，行了多少千米？"],
        (_, Ratio) => &["{p}和{q}的比是{0}:{1}。", "{p}与{q}的比为{0}:{1}。"],
        (_, InAll) => &["{b}一共有{0}。", "{b}共有{0}。"],
        (_, FirstIs) => &["{p}有{0}。"],
        (_, SecondIs) => &["{q}有{0}。"],
        (_, AskFirst) => &["{p}有多少？"],
        (_, AskSecond) => &["{q}有多少？"],
        (_, AskBoth) => &["{b}一共有多少？", "{b}共有多少？"],
        // A start or comparison of a setting that has none; the tests tell every template.
        (_, Start | More | Fewer | Times | Part | AskLast | AskTotal) => &[""],
    }
}
