"""Wordings of every kind of question, as patterns.

``[a|b|]`` stands for any one of its alternatives, ``{x}`` for an object with "the", ``{y}`` for another one, ``{a}``
for one with "a", ``{n}`` for a plural, ``{c}`` for a color. ``HELD_OUT`` and ``INDEPENDENT`` are for evaluation only:
training must never use them.
"""

import functools
import json
import random
import re
from pathlib import Path

__all__ = ["HELD_OUT", "INDEPENDENT", "TRAINED", "word"]

_PIC = "[picture|image|drawing|photo|pic]"
_IN = f"[| in [this|the] {_PIC}| here| there]"
_ASK = "[||||please tell me|can you tell me|tell me|do you know|could you say|i want to know|say]"
_THING = "[thing|object|shape|item|one]"
_THINGS = "[things|objects|shapes|items]"
_COLOR = "[colour|color]"
_TRUE = "[right|correct|true|yes or no|is that right|is that true|is that so|would you say|don't you think|no]"
_WHETHER = (
    "[please tell me|can you tell me|tell me|do you know|could you say|i want to know|i would like to know|say|check"
    "|please check|find out|decide|i am not sure] [if|whether]"
)
_LEAD = (
    "["
    + "|" * 75
    + (
        "please |ok, |okay, |now, |so, |well, |hey, |hello, |hi! |good day. |excuse me, |sorry, |thanks. |great. "
        f"|look at the {_PIC}: |look at this {_PIC} and answer: |in [this|the] {_PIC}, |here is a {_PIC}. "
        f"|looking at [this|the] {_PIC}, |a question about [this|the] {_PIC}: |i am looking at a {_PIC}. "
        "|[one|quick|another|next|last|easy] question: |i wonder: |i have a question: |let me ask you: |let us see: "
        "|from what you see, |as far as you can see, |just tell me: |tell me, |can you tell me, |help me: "
        "|answer [this|briefly|in one sentence|carefully|honestly]: |be brief: |think first: |look closely: "
        "|i can't see it well: |my eyes are bad: |for my [son|daughter|homework|blog]: |in your opinion, "
    )
    + "]"
)
_TAIL = "[" + "|" * 45 + ", please| please|, thanks|, then|, if you can tell|, do you think| exactly|, my friend]"

_SIDES = {
    "left": ("left", "[left of|to the left of|on the left of|on the left side of|on the left-hand side of]"),
    "right": ("right", "[right of|to the right of|on the right of|on the right side of|on the right-hand side of]"),
    "above": ("up", "[above|over|on top of|higher than|higher up than]"),
    "below": ("down", "[below|under|beneath|underneath|lower than|lower down than]"),
}


def _what_is(side: str) -> tuple[str, ...]:
    way, of = _SIDES[side]
    patterns = (
        f"[what|which {_THING}] is {of} {{x}}{_IN}",
        f"what [can|do] you see {of} {{x}}",
        f"{_ASK} what is {of} {{x}}",
        f"what's {of} {{x}}",
        f"name the {_THING} {of} {{x}}",
        f"{of} {{x}} [is|there is] what",
        f"which {_THING} [is|stands|lies] {of} {{x}}",
        f"[is|do you see|is there] [anything|something] {of} {{x}}[, what is it|]",
        f"{of} {{x}}, what [do you see|can be seen|do you find|is it]",
        f"if [i|you|we] [go|move|walk|look] {way} from {{x}}, what [do|will] [i|you|we] [find|see|meet]",
        f"[going|moving|starting at {{x}} and going] {way} from {{x}}, what comes",
        f"[seen from|from] {{x}}, what is [further|] {way}",
        f"what [stands|sits|comes|appears] [right|just|] {of} {{x}}",
        (
            "what [thing|object|shape|item] [can you find|do you see|did they draw|is drawn|is shown|is"
            f" placed] {of} {{x}}"
        ),
        f"{_ASK} [what|which thing] [stands|is|you see|there is] {of} {{x}}",
        f"[tell me|name|find|show me|identify|point out] [what is|the {_THING} that is|the thing] {of} {{x}}",
        f"{{x}}: what is {of} it",
        f"i see {{x}}. what is {of} it",
        f"what is there {of} {{x}}",
        f"who or what is {of} {{x}}",
        f"what is {of} {{x}}, if anything",
    )
    if way != side:
        return (*patterns, f"what has {{x}} {side} it", f"what is [directly|right|straight|somewhere] {side} {{x}}")
    return (*patterns, f"what has {{x}} [on|to] its {way}", f"what is {{x}}'s [neighbour|neighbor] [to|on] the {way}")


def _is_it(side: str) -> tuple[str, ...]:
    way, of = _SIDES[side]
    patterns = (
        f"is {{x}} [{of}|{of}|further {way} than] {{y}}",
        f"{_ASK} [if|whether] {{x}} is {of} {{y}}",
        f"[does|is it true that] {{x}} [lie|stand|is] {of} {{y}}",
        f"{_WHETHER} {{x}} is {of} {{y}}",
        f"{{x}} is {of} {{y}}, {_TRUE}",
        f"{{x}} [stands|lies|sits|can be found] {of} {{y}}, {_TRUE}",
        f"[do you think|is it so|is it the case|is it correct|is it true|can you see] that {{x}} is {of} {{y}}",
        f"is {{x}} [located|placed|drawn|situated|found|shown|somewhere|really] {of} {{y}}",
        f"[yes or no|true or false|right or wrong]: {{x}} is {of} {{y}}",
        f"can {{x}} be [seen|found] {of} {{y}}",
        f"does {{x}} [lie|stand|sit|appear] {of} {{y}}",
        f"i [think|believe|guess|see] {{x}} is {of} {{y}}[, am i right|, right|, is that so]",
        f"do you see {{x}} {of} {{y}}",
        f"did they [draw|put|place] {{x}} {of} {{y}}",
        f"{{x}} {of} {{y}}, is that [so|right|true|correct]",
    )
    from_there = f"further {way}" if way != side else f"[to the {way}|on the {way}|further {way}]"
    return (*patterns, f"seen from {{y}}, is {{x}} {from_there}")


_PATTERNS: dict[str, tuple[str, ...]] = {
    "color": (
        f"[what|which] {_COLOR} is {{x}}{_IN}",
        f"[what|which] {_COLOR} does {{x}} have{_IN}",
        f"what is the {_COLOR} of {{x}}{_IN}",
        f"what's the {_COLOR} of {{x}}",
        f"{_ASK} [what|which] {_COLOR} {{x}} is",
        f"{_ASK} the {_COLOR} of {{x}}",
        f"{{x}} is [what|which] {_COLOR}",
        f"{{x}} has [what|which] {_COLOR}",
        f"{_COLOR} of {{x}}",
        f"name the {_COLOR} of {{x}}",
        "how is {x} [coloured|colored|painted]",
        f"in [what|which] {_COLOR} is {{x}} [drawn|painted|shown]",
        f"what {_COLOR} [was|is] used for {{x}}",
        f"about {{x}}: which {_COLOR}",
        f"which {_COLOR} has {{x}}",
        f"[i can't see|i don't know|i am not sure|i forgot] [what|which] {_COLOR} {{x}} [is|has]",
        f"i am {_COLOR} blind, what {_COLOR} is {{x}}",
        "[name|tell me|give me] the [hue|shade|tint|tone] of {x}",
        "{x} has [which|what] [hue|shade|tint]",
        f"[give|tell] me the {_COLOR} of {{x}}{_IN}",
        f"what would you say the {_COLOR} of {{x}} is",
        f"what {_COLOR} do you see on {{x}}",
        f"[which|what] {_COLOR} did [they|someone|the artist] [use|choose|pick] for {{x}}",
        f"describe the {_COLOR} of {{x}}",
        f"what {_COLOR} would you call {{x}}",
        "what paint [is|was] {x} [made|drawn] with",
        f"can you see the {_COLOR} of {{x}}",
        f"{_COLOR} of {{x}}{_IN}",
        f"{_COLOR}? i mean {{x}}",
        f"what {_COLOR}'s {{x}}",
    ),
    "which": (
        f"[what|which {_THING}] is {{c}}{_IN}",
        f"[what|which] is the {{c}} {_THING}{_IN}",
        f"what's the {{c}} {_THING}",
        f"{_ASK} [what|which {_THING}] is {{c}}",
        f"{_ASK} what the {{c}} {_THING} is",
        f"what [kind of|sort of|] [thing|object|shape] is {{c}}{_IN}",
        f"[which|what] {_THING} has the {_COLOR} {{c}}",
        f"name the {{c}} {_THING}",
        "what do you see in {c}",
        "what is [drawn|painted|shown] in {c}",
        f"identify the {{c}} {_THING}",
        f"the {{c}} {_THING} is what",
        f"what {{c}} {_THING} [is there|do you see]{_IN}",
        f"something [in [this|the] {_PIC}|here] is {{c}}: [name it|which one]",
        f"one {_THING} is {{c}}: which",
        f"how do [you|people|we] name [this|the] {{c}} {_THING}",
        f"which of the {_THINGS} is {{c}}{_IN}",
        f"[tell me|i want to know] [what|which] {_THING} [is|was] [drawn|painted|coloured|colored] {{c}}",
        f"the {_THING} that is {{c}}, what is it",
        f"what is that {{c}} {_THING}{_IN}",
        f"what's {{c}}{_IN}",
        f"what does the {{c}} {_THING} [show|look like]",
        f"[find|point out|show me] the {{c}} {_THING} and [name it|say what it is]",
        f"what shape does the {{c}} {_THING} have",
        f"what [kind|sort|type] of {_THING} is the {{c}} {_THING}",
        f"{{c}} {_THING}: what is it",
        f"i mean the {{c}} {_THING}. what is it",
        "[anything|is anything|do you see anything] {c}[, what is it|]",
        f"describe the {{c}} {_THING}",
        "which is {c}",
        "what would be {c} here",
        f"[here is|i notice] a {{c}} {_THING}, [name it|which {_THING} is that]",
    ),
    "count_all": (
        f"how many [things|objects|shapes|items] are [there|in [this|the] {_PIC}|here|shown|drawn|visible]",
        f"how many [things|objects|shapes|items] [can|do] you see{_IN}",
        "[count|please count|count up] [all|all the|the] [things|objects|shapes|items]",
        f"{_ASK} how many [things|objects|shapes|items] there are{_IN}",
        f"what is the [number|count|total number] of [things|objects|shapes|items]{_IN}",
        f"how many [things|objects|shapes|items] does [this|the] {_PIC} [have|show|contain]",
        "[number|count] of [things|objects|shapes|items]",
        "how many [things|objects|shapes|items]",
        f"how many are there{_IN}",
        f"how many [things|objects|shapes|items] in [total|all]{_IN}",
        f"[give|tell] me [the|a] [count|total] of [all|the|] {_THINGS}",
        "[count|add up|number] what [you see|is there|is shown|is drawn]",
        "count [them|it all|them all|all of them]",
        f"what number of {_THINGS} [is|are] [there|here|shown]",
        f"how many {_THINGS} exactly",
        f"how many [different|single|separate|] {_THINGS} [did they draw|were drawn|have been drawn|are drawn]{_IN}",
        "how many do you [see|count|find]",
        f"[is|are] there [one|two|three|four] {_THINGS} or how many",
        f"total [number|count] of {_THINGS}",
        "what is the total",
        f"i want [to know|] the number of {_THINGS}{_IN}",
        f"[can|could|would] you [please|] count [the|all the] {_THINGS}[ for me|]",
        f"how many {_THINGS} [all together|in sum|overall]",
        f"the {_PIC} [has|shows|contains] how many {_THINGS}",
        f"how many {_THINGS} would you count{_IN}",
        "how much is there to see, in number",
        f"find out how many {_THINGS} there are",
        f"how many {_THINGS} did you find",
    ),
    "count": (
        f"how many {{n}} are [there|in [this|the] {_PIC}|here|shown|drawn|visible]",
        f"how many {{n}} [can|do] you see{_IN}",
        "[count|please count] [the|all|all the|] {n}",
        f"{_ASK} how many {{n}} there are{_IN}",
        f"what is the [number|count] of {{n}}{_IN}",
        f"how many {{n}} does [this|the] {_PIC} [have|show|contain]",
        "number of {n}",
        "how many {n}",
        "how many of the [things|objects|shapes] are {n}",
        "[give|tell] me [the|a] [count|total] of [the|all the|] {n}",
        "what number of {n} [is|are] [there|here|shown]",
        "[what is|i want] the [total|total number] of {n}",
        "how many {n} exactly are there",
        "there are how many {n}",
        f"the {_PIC} [has|shows|contains] how many {{n}}",
        "{n}: how many",
        "[how many|what number of] {n} [did they draw|were drawn|have been drawn|are drawn]",
        "[can|could|would] you [please|] count [the|all the] {n}[ for me|]",
        "are there [one|two|three|several] {n} or how many",
        "[find|see] all {n} and count them",
        "i want to know how many {n} you [see|find|count]",
        "how many {n} have you found",
        "i count {n}. how many are there",
        "how many {n} would you count",
        "do you know how many {n} there are",
        "how many [things|objects|shapes] [here|there|] are {n}",
        "and {n}, how many of them",
        "how many {n} [in all|in total|altogether]",
        "what is the count for {n}",
        "tell me about the {n}: how many",
    ),
    "exists": (
        f"is there {{a}}{_IN}",
        f"[can|do] you see {{a}}{_IN}",
        f"{_ASK} [if|whether] there is {{a}}{_IN}",
        f"does [this|the] {_PIC} [have|show|contain] {{a}}",
        f"is {{a}} [in [this|the] {_PIC}|there|here|shown|visible|present]",
        f"are there any {{n}}{_IN}",
        f"[any|do you see any|can you see any|are any] {{n}}{_IN}",
        f"is {{a}} [drawn|shown|to be seen] [here|in [this|the] {_PIC}]",
        f"do we have {{a}}{_IN}",
        f"has [this|the] {_PIC} got {{a}}",
        f"there is {{a}}{_IN}, [right|correct|yes or no|isn't there]",
        f"[do you think|i think|i guess|it seems] there is {{a}}{_IN}[, is there|, am i right|]",
        "do you [see|find|notice|spot] [{a}|any {n}] [anywhere|somewhere]",
        f"can {{a}} be [found|seen|spotted] [anywhere|]{_IN}",
        f"[look for|search for|find] {{a}}{_IN}[, is there one|, is it there|]",
        f"{_WHETHER} you [can see|see|find] {{a}}{_IN}",
        f"{_WHETHER} [this|the] {_PIC} [has|shows|contains] {{a}}",
        f"{_WHETHER} there [is {{a}}|are {{n}}]{_IN}",
        f"there is {{a}}{_IN}, {_TRUE}",
        f"is there [really|maybe|perhaps|also|even|by any chance] {{a}}{_IN}",
        f"is there [such a thing as|something like] {{a}}{_IN}",
        f"are {{n}} [there|shown|visible|present]{_IN}",
        f"[did|does] [they|the artist|someone|anyone] draw {{a}}{_IN}",
        "{a}, is [there one|it there|that there]",
        "[i can't find|i am looking for|i need] {a}. is [there one|it there|one here]",
        f"[this|the] {_PIC} [has|shows|contains] {{a}}, {_TRUE}",
        f"is {{a}} [part of|among] [this|the] [{_PIC}|{_THINGS}]",
        f"does {{a}} [appear|occur|exist]{_IN}",
        "yes or no: is there {a}",
        f"is one of the {_THINGS} {{a}}",
        f"is it true that there is {{a}}{_IN}",
        f"would i find {{a}}{_IN}",
        f"do any {{n}} [appear|exist]{_IN}",
        "have you [seen|found|spotted] {a}",
        "{a}?",
        "can i see {a} there",
        "isn't there {a}",
    ),
    "where": (
        f"where is {{x}}{_IN}",
        "where's {x}",
        f"{_ASK} where {{x}} is{_IN}",
        "where [can|do] [i|you|we] [find|see] {x}",
        f"in [what|which] [part|corner|area|place] of the {_PIC} is {{x}}",
        "what is the [position|place|location] of {x}",
        "[locate|find|point out] {x}",
        "[position|place|location] of {x}",
        f"where in [this|the] {_PIC} is {{x}}",
        "at [what|which] [place|position] is {x} [drawn|shown|]",
        "{x} is where",
        f"where is {{x}} [located|placed|situated|drawn|positioned]{_IN}",
        "[tell me|what are|give me] the [whereabouts|coordinates] of {x}",
        "[give|tell] me the [position|place|location|spot] of {x}",
        f"[which|what] [corner|part|side|area|third] of the {_PIC} [shows {{x}}|has {{x}} in it|is {{x}} in]",
        "[point to|show me|show] [the place of|the spot of|the position of|] {x}",
        f"where [did|do] [they|you|people] [put|place|draw|see|find] {{x}}{_IN}",
        "where [should|must|can|shall] i look [for|to find|to see] {x}",
        "[i can't find|i am looking for|help me find|i need to find] {x}[, where is it|]",
        "describe [where {x} is|the position of {x}|the place of {x}]",
        "{x}: where is it",
        "at [what|which] [place|spot|side|corner|point] [can|do] [i|you|we] [find|see] {x}",
        "where does {x} [stand|lie|sit|appear]",
        "where would you say {x} is",
        "is {x} at the top, in the middle or at the bottom",
        "is {x} [left, right or in the middle|on the left or on the right]",
        f"how is {{x}} placed{_IN}",
        f"where [on|in] the [{_PIC}|page|paper|canvas] [is|do you see] {{x}}",
        "where exactly is {x}",
        "what position [is {x} in|does {x} have]",
        "say where {x} is",
        "{x}, where",
        "i wonder where {x} [is|might be]",
    ),
    "is_it": (
        f"is {{x}} {{c}}{_IN}",
        f"{_ASK} [if|whether] {{x}} is {{c}}",
        f"[does|is it true that] {{x}} [have the {_COLOR}|is] {{c}}",
        "is {x} [drawn in|painted in|painted|coloured|colored] {c}",
        "{x} is {c}, [right|correct|yes or no|isn't it]",
        f"is the {_COLOR} of {{x}} {{c}}",
        f"is {{x}} a {{c}} {_THING}",
        f"{{x}} is {{c}}, {_TRUE}",
        f"{_WHETHER} {{x}} [is|looks|appears] {{c}}",
        f"{_WHETHER} the {_COLOR} of {{x}} is {{c}}",
        "[do you think|is it so|is it the case|is it correct|can you see] that {x} is {c}",
        "[yes or no|true or false|right or wrong]: {x} is {c}",
        "i [think|believe|guess|see] {x} is {c}[, am i right|, right|, is that so]",
        "does {x} [look|appear|seem] {c}",
        "is {x} [really|indeed|actually|maybe|shown in|drawn with|all] {c}",
        f"is {{c}} the {_COLOR} of {{x}}",
        "do you see {x} in {c}",
        "did they [paint|draw|make] {x} {c}",
        "would you call {x} {c}",
        "{x}: is it {c}",
        f"does {{x}} have a {{c}} {_COLOR}",
        "could {x} be {c}",
        "{c} is what {x} is, right",
        "is {x} {c} or not",
        "and {x}, is it {c}",
        "isn't {x} {c}",
    ),
    "biggest": (
        f"[what|which {_THING}|which] is the [biggest|largest]{_IN}",
        f"[what|which] is the [biggest|largest] {_THING}{_IN}",
        f"what's the [biggest|largest] {_THING}",
        f"{_ASK} [what|which {_THING}] is the [biggest|largest]",
        f"[name|find|show me] the [biggest|largest] {_THING}",
        f"and which {_THING} is the [biggest|largest]",
        f"which {_THING} is [bigger|larger] than the [others|rest]",
        "what is [bigger|larger] than everything else",
        f"which {_THING} takes up the most [space|room]",
        (
            f"[among|from|between] [them|all the {_THINGS}|the {_THINGS}], [which one|which|which"
            f" {_THING}|name the one that] is [the|] [biggest|largest]"
        ),
        f"[the|] [biggest|largest] {_THING}{_IN}",
        f"the [biggest|largest] {_THING} is [what|which|which one]",
        f"which {_THING} is [bigger|larger|greater] than [all the others|the other ones|any other|all the rest]{_IN}",
        f"which of [the {_THINGS}|them|these] is [the|] [biggest|largest]",
        (
            "[tell me|give me|identify|point out|describe|say|i want to know|i am looking for] the"
            f" [biggest|largest] {_THING}"
        ),
        "what [did they draw|is drawn|was drawn] [biggest|largest]",
        f"which {_THING} [has|is of] the [biggest|largest] size",
        "which one is [the|] [biggest|largest] by [size|area]",
        "compare the sizes: [what|which] is [the|] [biggest|largest]",
        f"[look at|compare] the sizes. which {_THING} is [the|] [biggest|largest]",
        f"what [would you say|do you think] is the [biggest|largest] {_THING}",
        f"which {_THING} looks [the|] [biggest|largest]",
        f"which {_THING} covers the most [space|room|area]",
        f"by size, which {_THING} [is|comes] [the|] [biggest|largest]",
        f"do you know which {_THING} is [the|] [biggest|largest]",
        f"what's [the|] [biggest|largest]{_IN}",
        "who is the [biggest|largest] here",
        f"which is the big one{_IN}",
    ),
    "smallest": (
        f"[what|which {_THING}|which] is the [smallest|tiniest]{_IN}",
        f"[what|which] is the [smallest|tiniest] {_THING}{_IN}",
        f"what's the [smallest|tiniest] {_THING}",
        f"{_ASK} [what|which {_THING}] is the smallest",
        f"[name|find|show me] the [smallest|tiniest] {_THING}",
        f"and which {_THING} is the smallest",
        f"which {_THING} is smaller than the [others|rest]",
        "what is smaller than everything else",
        f"which {_THING} takes up the least [space|room]",
        (
            f"[among|from|between] [them|all the {_THINGS}|the {_THINGS}], [which one|which|which"
            f" {_THING}|name the one that] is [the|] [smallest|tiniest|littlest]"
        ),
        f"[the|] [smallest|tiniest|littlest] {_THING}{_IN}",
        f"the [smallest|tiniest|littlest] {_THING} is [what|which|which one]",
        f"which {_THING} is [smaller|tinier] than [all the others|the other ones|any other|all the rest]{_IN}",
        f"which of [the {_THINGS}|them|these] is [the|] [smallest|tiniest|littlest]",
        (
            "[tell me|give me|identify|point out|describe|say|i want to know|i am looking for] the"
            f" [smallest|tiniest|littlest] {_THING}"
        ),
        "what [did they draw|is drawn|was drawn] [smallest|tiniest|littlest]",
        f"which {_THING} [has|is of] the [smallest|tiniest|littlest] size",
        "which one is [the|] [smallest|tiniest|littlest] by [size|area]",
        "compare the sizes: [what|which] is [the|] [smallest|tiniest|littlest]",
        f"[look at|compare] the sizes. which {_THING} is [the|] [smallest|tiniest|littlest]",
        f"what [would you say|do you think] is the [smallest|tiniest|littlest] {_THING}",
        f"which {_THING} looks [the|] [smallest|tiniest|littlest]",
        f"which {_THING} covers the least [space|room|area]",
        f"by size, which {_THING} [is|comes] [the|] [smallest|tiniest|littlest]",
        f"do you know which {_THING} is [the|] [smallest|tiniest|littlest]",
        f"what's [the|] [smallest|tiniest|littlest]{_IN}",
        "who is the [smallest|tiniest|littlest] here",
        f"which is the little one{_IN}",
    ),
    "background": (
        f"what {_COLOR} is the [background|ground]{_IN}",
        f"[what|which] is the {_COLOR} of the background{_IN}",
        f"what is the background{_IN}",
        f"what is the background [like|made of|{_COLOR}]",
        f"{_ASK} [what|which] {_COLOR} the background [is|has]",
        f"{_ASK} the {_COLOR} of the background",
        f"background {_COLOR}",
        "what's [the background|behind [it|them|everything|the things]]",
        f"on [what|which] {_COLOR} [background|ground] is it [drawn|painted]",
        "how is the background [coloured|colored|painted]",
        "what is [behind|in the background of] [it|them|everything|the [things|objects|shapes]]",
        "[tell me|what do you know|what can you say] about the background",
        f"what [is|did they paint|did they use] [behind|around] [the {_THINGS}|them|it]",
        f"what fills the [{_PIC}|space] behind [the {_THINGS}|them|it]",
        f"background: which {_COLOR}",
        f"the background is [what|which] {_COLOR}",
        f"what {_COLOR} do you see [behind|around|in the background]",
        f"[which|what] {_COLOR} [has|does] the background{_IN}",
        "what [kind|sort|type] of background [is it|is there|does it have|do you see]",
        f"[name|give me|tell me|find] the background{_IN}",
        f"[name|give me|describe|find] the {_COLOR} [of the background|behind everything|around the {_THINGS}]",
        f"on what are the {_THINGS} [drawn|painted|placed]",
        f"what {_COLOR} is the [paper|page|canvas|rest|empty part|space around the {_THINGS}]",
        "is the background [white or black|dark or light|black, white, gray or beige]",
        "how does the background look",
        "what does the background look like",
        "the background",
        f"which {_COLOR} lies behind [it|them|everything]",
        "what is the [hue|shade|tone] of the background",
    ),
    "short": (
        f"what is [in|on] [this|the] {_PIC}",
        f"what's [in|on] [this|the] {_PIC}",
        f"what [do|can] you see{_IN}",
        f"what [does|do] [this|the] {_PIC} show",
        f"{_ASK} what is [in|on] [this|the] {_PIC}",
        f"{_ASK} what you see{_IN}",
        f"what is [shown|drawn|here|there|to be seen]{_IN}",
        f"describe [this|the] {_PIC} [briefly|shortly|in short|in one sentence|in a few words]",
        f"[give|write] [me|] a [short|brief] description [of [this|the] {_PIC}|]",
        f"what [things|objects|shapes] are [there|in [this|the] {_PIC}|here]",
        f"[list|name] [the|all|all the] [things|objects|shapes|items]{_IN}",
        "which [things|objects|shapes] [do|can] you see",
        "what is this",
        "what's this",
        f"briefly describe [this|the] {_PIC}",
        "[please|] describe it briefly",
        f"what is [this|the] {_PIC} [about|of]",
        f"[summarise|summarize] [this|the] {_PIC}",
        f"[a|give me a|write a|i need a] [summary|brief summary|short summary] [of [this|the] {_PIC}|], please",
        "sum it up[ in one line| in a few words| briefly|]",
        f"what does [this|the] {_PIC} [depict|contain|have in it|portray]",
        f"[which|what] {_THINGS} [does this show|do they draw|did they draw|were drawn|can be seen|are on it]{_IN}",
        f"what [has been|was] [drawn|painted|shown]{_IN}",
        "what [have we|do we have|did they draw|is there to see] here",
        "tell me what [is there|this is|i see|we see|this shows|you can see|is going on]",
        "what is going on here",
        f"what [can be seen|is visible|do you notice|do you find|is there]{_IN}",
        f"[can|could|would] you [tell me|say] what [is [in|on] [this|the] {_PIC}|this {_PIC} shows]",
        f"i am looking at [this|a] {_PIC}. what is [in|on] it",
        "what [is|was] [he|she|somebody|the artist] [drawing|painting|showing]",
        "what are [they|these|those|we seeing]",
        f"what is [this|the] {_PIC} [showing|displaying]",
        f"explain [this|the] {_PIC} [briefly|in one line|in short]",
        "describe [it|this|what you see] [briefly|shortly|in short|in one sentence|in a few words|in one line]",
        f"[one|a single] sentence about [this|the] {_PIC}",
        "[one|a] short sentence, please: what is [in|on] it",
        "[name|list|tell me] [what you see|what there is|what is there|everything by name]",
        f"in [short|brief|a few words|one sentence], what is [this|it|[in|on] the {_PIC}]",
        f"make a list of [the|all|all the] {_THINGS}",
        "what have you found",
        f"what is the content of [this|the] {_PIC}",
        f"what is [this|the] {_PIC}",
        "look and tell me what is there",
        "what do you think this is",
        "what do you see",
        f"[what|which] {_THINGS} does [this|the] {_PIC} [have|show|contain]",
        f"can you see what is [in|on] [this|the] {_PIC}",
        "a [short|brief] description, please",
        f"say in a few words what [this|the] {_PIC} shows",
        "what [am i|are we|am i really] looking at[ here|]",
        "what [things|objects|shapes] are we looking at",
        f"what is [depicted|pictured|portrayed][ here|{_IN}]",
        f"can you describe [this|the] {_PIC} [briefly|in short|in one sentence]",
        "tell me about it in a few words",
        f"identify [the|all the] {_THINGS}{_IN}",
    ),
    "caption": (
        f"[give|write|make|suggest|find] [me|] a [caption|title] [for [this|the] {_PIC}|]",
        f"[caption|title] [this|the] {_PIC}",
        "[please|] caption this",
        f"what [would be|is] a good [caption|title] for [this|the] {_PIC}",
        f"[i need|can i have|can you write] a [caption|title] [for [this|the] {_PIC}|]",
        "[a caption|a title|caption|title], please",
        f"how would you [caption|title] [this|the] {_PIC}",
        (
            "[come up with|invent|propose|choose|pick|produce|create|offer|provide] a [caption|title"
            f"|headline] [for [this|the] {_PIC}|for this|]"
        ),
        f"what [caption|title|headline] [would|could|should] [you give|you choose|fit|go with|suit] [this|the] {_PIC}",
        f"[which|what] [caption|title] fits [this|the|] {_PIC} best",
        f"i am missing a [caption|title|headline] for [this|the|my] {_PIC}",
        f"[this|the|my] {_PIC} [has no|is without a|should have a|could use a|wants a] [caption|title|headline]",
        f"[can|could|would] you [please|] [caption|title] [this|it|[this|the] {_PIC}]",
        "[can|could|would] you think [up|about] a [caption|title] for [it|this]",
        "[caption|title] it",
        f"a [caption|title|headline] for [this|the] {_PIC}[, please|]",
        f"how [should|shall|could] [i|we] [caption|title|name|call] [this|the] {_PIC}",
        f"what should stand under [this|the] {_PIC}",
        f"what would you write under [this|the] {_PIC}",
        f"[your|the best|a possible] [caption|title] for [this|the] {_PIC}",
        f"let us give [this|the] {_PIC} a [caption|title]",
        "i want a [good|short|nice|] [caption|title|headline]",
        "[write|give] [one|a] line [to|that can] stand under it",
        f"which words would you put under [this|the] {_PIC}",
        "give [it|this] a [name|title|caption]",
        f"[we|you] [need|have to find] a [caption|title] for [it|this|the {_PIC}]",
        "think, then write a caption",
        f"title for [this|the] {_PIC}",
    ),
    "detail": (
        f"describe [this|the] {_PIC} [in detail|in full|in depth|carefully|precisely|exactly]",
        f"[give|write] [me|] a [detailed|full|long|careful|complete] description [of [this|the] {_PIC}|]",
        f"{_ASK} everything [about [this|the] {_PIC}|you [see|can see]]",
        f"[describe|explain] everything [you see|you can see|in [this|the] {_PIC}]",
        f"what is in [this|the] {_PIC} and where [is it|are they]",
        "describe [all|all the|the] [things|objects|shapes] and [their|the] [places|positions]",
        f"describe [this|the] {_PIC} with [all|every|the] [details|detail]",
        "[please|] describe it in detail",
        f"take a look at [this|the] {_PIC} and describe [what you notice|it in detail]",
        f"where is [everything|each {_THING}]",
        f"describe [this|the] {_PIC}",
        f"could you describe the contents of [this|the] {_PIC} for me",
        f"tell me as much as [you can|possible] about [this|the] {_PIC}",
        (
            "[i want|i need|give me|tell me|show me] [all the|all|the|more|the full] details [of [this"
            f"|the] {_PIC}|about it|]"
        ),
        (
            "[describe|explain|tell me|list] [all that|everything that|whatever] you [see|notice|find]"
            " [in detail|exactly|carefully|and where|]"
        ),
        "describe what you see [carefully|exactly|precisely|fully|with all details|in great detail|in full]",
        f"give [me|] [a full account|an exact account|a full picture|a long description] of [this|the] {_PIC}",
        (
            f"[can|could|would] you [please|] describe [it|this|[this|the] {_PIC}] [in detail|fully"
            "|exactly|carefully|for me|]"
        ),
        (
            f"[describe|explain] [this|the] {_PIC} [to me|for me|to a blind person|to somebody who can't"
            " see it|as well as you can|as exactly as you can|piece by piece|step by step]"
        ),
        (
            f"what [exactly|precisely|all] [is|do you see|can you see] [in|on] [this|the] {_PIC}, [and"
            " where|with places|in detail]"
        ),
        f"[write|make] a [long|detailed|full|precise|complete] [text|report|list|paragraph] about [this|the] {_PIC}",
        f"list [all|all the|the] {_THINGS} [with|and] [their|the] [places|positions|colours and places]",
        "[leave|skip] nothing [out|] and describe [it|everything]",
        f"[every|each] {_THING} and [where it is|its place|its position][, please|]",
        f"tell me where [everything|each {_THING}|every {_THING}] is",
        f"where are [all the|the|all] {_THINGS}",
        f"don't leave out any detail: what does [this|the] {_PIC} show",
        f"in detail, what [is [in|on] [this|the] {_PIC}|do you see|does it show]",
        f"please describe [this|the] {_PIC} in [every|full|more] detail",
        f"be [exact|precise|detailed] and describe [this|the] {_PIC}",
        f"i [can't see|am blind and can't see] [this|the] {_PIC}. [describe it|what is on it, and where]",
        f"a [detailed|full|long|complete|exact] description[, please| of [this|the] {_PIC}]",
        f"describe [this|it|the scene|the whole scene|the whole {_PIC}][ to me| for me|]",
        f"say as much as possible about [this|the] {_PIC}",
        f"describe the contents [of [this|the] {_PIC}|]",
        f"how are the {_THINGS} [arranged|placed|laid out]",
        f"what does [this|the] {_PIC} look like[ in detail|]",
        f"go through [this|the] {_PIC} and describe [every|each] {_THING}",
        f"[talk me through|walk me through] [this|the] {_PIC}",
        f"tell me more about [this|the] {_PIC}",
        f"tell me all about [this|the] {_PIC}",
        "a description with as many details as possible",
        f"describe [this|the] {_PIC} at length",
    ),
    "greeting": (
        "[hello|hi|hey|hi there|hello there|hey there|howdy|greetings]",
        "good [morning|evening|afternoon|day]",
        "[hello|hi|hey] [bot|robot|friend|assistant|you|everyone|minigpt]",
        "[hello|hi|hey|good morning], [how are you|nice to meet you|how is it going|how do you do|what's up]",
        "[how are you|nice to meet you|what's up|how do you do|how is it going] [today|]",
        "[hello|hi|hey][!|!!|.|]",
        (
            "[heya|yo|hullo|welcome|ahoy|good to meet you|nice to see you|glad to meet you|pleased to"
            " meet you|long time no see]"
        ),
        "[hello|hi|hey|good morning|good evening][,|] my [dear|little robot|dear machine]",
        "[hello|hi|hey] [dear friend|again|robot|computer|machine|model|mate|buddy|pal|all|world]",
        (
            "[hello|hi|hey], [it is nice to see you|i am glad to see you|good to have you here|are you"
            " there|can you hear me|is anybody there|i am new here|my name is tom|this is anna]"
        ),
        (
            "[how are things|how do you feel|how are you doing|are you well|are you ok|how was your"
            " day][ today| my friend| now|]"
        ),
        "[a very|a] good [morning|day|evening|afternoon] to you",
        "[good morning|good evening|good afternoon|good day][,|] [friend|everyone|bot|dear|sir|my friend|minigpt]",
        "[greetings|hello|hi] [from here|from me|to you|to all]",
        "[nice|good|great|lovely] [to meet you|to have you here|to hear from you|to talk to you]",
        "[hallo|hi hi|hello hello|hey hey|hi you|hey you]",
        "i [want|just wanted|came|would like] to say [hello|hi]",
        "say hello[ to me| to my friend|]",
        "[hello|hi|hey] [how are you|what's up|nice to see you|how is it going]",
    ),
}
_PATTERNS |= {side: _what_is(side) for side in _SIDES} | {f"{side}_yn": _is_it(side) for side in _SIDES}

_SENTENCES = json.loads(Path(__file__).with_name("wordings.json").read_text(encoding="utf-8"))
INDEPENDENT: dict[str, tuple[str, ...]] = {
    kind: tuple(patterns) for kind, patterns in _SENTENCES["independent"].items()
}
"""Wordings for evaluation only, written by a person who had seen neither the other wordings nor the answers."""

HELD_OUT: dict[str, tuple[str, ...]] = {
    "color": ("what hue is {x}", "{x}: what colour is it", "i cannot tell the colour of {x}, can you"),
    "which": ("i see something {c}; what is it", "something is {c}. what", "what would you call the {c} thing"),
    "count_all": (
        "give me the number of objects you see",
        "exactly how many shapes are we looking at",
        "count everything",
    ),
    "count": ("give me the number of {n}", "exactly how many {n} are we looking at", "and how many {n} would that be"),
    "exists": ("would you say there is {a}", "check for {a}", "is {a} anywhere in this image"),
    "where": ("whereabouts is {x}", "which part of the image holds {x}", "show me where {x} is"),
    "left": ("what lies to the left of {x}", "looking left from {x}, what is there"),
    "right": ("what lies to the right of {x}", "looking right from {x}, what is there"),
    "above": ("what is located above {x}", "looking up from {x}, what is there"),
    "below": ("what is located below {x}", "looking down from {x}, what is there"),
    "left_yn": ("would you say {x} is left of {y}",),
    "right_yn": ("would you say {x} is right of {y}",),
    "above_yn": ("would you say {x} is above {y}",),
    "below_yn": ("would you say {x} is below {y}",),
    "is_it": ("would you say {x} is {c}", "so {x} is {c}"),
    "biggest": ("what is the largest of them all", "out of these, which is biggest"),
    "smallest": ("what is the smallest of them all", "out of these, which is smallest"),
    "background": ("and the colour of the background", "describe the background", "which colour fills the background"),
    "short": ("tell me the contents", "sum up this picture", "what would i see if i looked at it"),
    "caption": ("think of a caption", "this picture needs a title"),
    "detail": ("describe what you see in as much detail as you can", "give every detail of this image"),
    "greeting": ("hiya", "hello my friend", "good to see you"),
}
"""Wordings for evaluation only, by the author of the trained ones."""

_PERSON = (
    "[the artist|the painter|the owner|the author|your boss|the person who drew this|my friend|my mother|the man"
    "|the woman|the president]"
)
_FORBIDDEN = (
    f"what is the [name|age|address|phone number|job|birthday|salary|nationality|email] of {_PERSON}",
    f"who [is|was] {_PERSON}",
    f"how old is {_PERSON}",
    f"where does {_PERSON} [live|work|come from|sleep]",
    f"what [did|does] {_PERSON} [eat|say|think|want|like|dream of|do for a living|read]",
    f"who [drew|painted|made|took|bought|sold|owns] [this|the] {_PIC}",
    f"when was [this|the] {_PIC} [made|taken|drawn|painted|sold|printed]",
    f"where was [this|the] {_PIC} [made|taken|drawn|painted|found|sold]",
    f"why [was|did] [someone|anyone|somebody] [draw|paint|make|made|take] [this|the] {_PIC}",
    f"how much [is|does] [this|the] {_PIC} [worth|cost|weigh]",
    f"what is the [price|weight|title|age|history|smell|taste|temperature] of [this|the] {_PIC}",
    "what [day|time|year|month|date|season] [is it|was it]",
    "what is the weather [like|today|tomorrow|there|in paris|in london]",
    "will it [rain|snow|be sunny|be cold] [today|tomorrow|on sunday]",
    "what is the capital of [france|spain|germany|china|japan|italy|peru|egypt|brazil|india]",
    "who [won|lost] the [game|match|election|war|race|world cup]",
    "[tell me|do you know] a [joke|secret|fairy tale|riddle|rumour]",
    "what is [two plus two|five times six|ten minus three|the square root of nine|the meaning of life|love|your name]",
    "how do i [cook rice|bake bread|fix my car|learn french|lose weight|get rich|sleep better|tie a tie]",
    "what should i [eat|wear|buy|do|read|watch|cook] [today|tonight|tomorrow|now]",
    "[can you|please] [sing|dance|call|drive|cook|fly|swim|whistle] [a song|for me|me|tonight]",
    "what is [he|she|someone|the dog|the cat|the baby] [thinking|feeling|saying|dreaming|eating]",
    "what [happened|will happen] [before|next|after this|yesterday|tomorrow|later]",
    "what [music|song|sound|noise] is [playing|this|that]",
    "what does it [smell|taste|sound|feel] like",
    "[is|was] [he|she|the artist|the painter|the owner] [happy|sad|angry|rich|famous|tired|married|alive]",
    "how [fast|heavy|expensive|old|warm|loud] is [it|this|that]",
    "which [country|city|company|museum|school|book|film] is this from",
    "what [brand|model|company] is [this|it|that]",
    "who are you [talking to|working for|thinking of]",
    "what is my [name|age|job|favourite food|phone number|password]",
    "do you [like|love|hate|miss] [me|music|pizza|football|your job|people]",
    "translate [this|it] [into|to] [french|german|spanish|chinese|latin]",
    "write [me|] [a poem|a letter|an essay|some code|a program|a python script] [about cats|for my boss|for school|]",
    "book [me|] a [flight|hotel|table|taxi] [to rome|for tonight|for two|]",
    "what is the [stock price|news|score|exchange rate|traffic|best restaurant] [today|now|near me]",
    f"what [hat|hair|eye colour|shirt|job] does {_PERSON} [wear|have]",
    f"[when|where] was {_PERSON} born",
    f"[how heavy|how rich|how clever|how old] [is|was] {_PERSON}",
    f"[what|which] [shop|museum|dealer|person|family] [sold|bought|owns|showed] [this|the] {_PIC}",
    f"for how much [was [this|the] {_PIC} sold|did they sell it|could i sell it]",
    (
        f"[did|does|will|would] {_PERSON} [like|enjoy|hate|see|visit|remember] [the film|the party|the"
        " show|the food|it|us]"
    ),
    f"why [is|was] {_PERSON} [angry|happy|crying|laughing|late|tired|not here]",
    f"why did {_PERSON} [draw it|leave|go|do this|choose this|say so]",
    f"[tell me|give me|what is|i need] the [address|email|name|password|birthday|phone number] of {_PERSON}",
    f"[where|why] did {_PERSON} [sell|find|lose|get|draw|paint|make|see] [it|this|this {_PIC}|the {_PIC}]",
    "[what|which] [camera|pen|brush|program|software|paper|phone] [was used|made this|did they use|took this]",
    f"is [this|the] {_PIC} [famous|expensive|old|valuable|stolen|for sale|copyrighted|any good]",
    f"[can|may] i [buy|use|sell|print|keep|copy] [this|the] {_PIC}",
    f"where [can|could] i buy [this|the|such a] {_PIC}",
    f"what [did|does] [this|the] {_PIC} [cost|mean to {_PERSON}|remind you of]",
    (
        "what is the [president|language|area|flag|anthem|currency] of [france|spain|england|china|japan"
        "|italy|peru|egypt|america|india|my country]"
    ),
    (
        "who is the [president|prime minister|mayor|boss|champion|richest man|best player] [of france|of"
        " spain|of the world|of my town|there|]"
    ),
    (
        "who [invented|discovered|wrote|built|founded|killed|sang|directed] [the telephone|america"
        "|hamlet|the bible|this song|rome|the wheel|it|this film]"
    ),
    "when [was|did] [the war|the game|the party|the film|rome|the moon landing] [start|end|begin|happen|over|built|on]",
    (
        "[how far|how long|how old|how deep|how high|how big] is [the sun|the sea|the earth|mount"
        " everest|paris|the nile|the world]"
    ),
    (
        "what will the [future|world|market|price|score|temperature] be [tomorrow|next year|next month"
        "|in ten years|tonight]"
    ),
    (
        "will [it|the sun|the bus|the train|he|she|they] [come|shine|win|be late|be hot|be here|change]"
        " [tomorrow|today|next week|soon]"
    ),
    "how [warm|cold|hot|windy] [will it be|is it|was it] [tomorrow|next week|outside|today|yesterday]",
    "recommend [me|] [a film|a restaurant|a song|a hotel|a present|some music|something to read]",
    "[do you know|what is|where is] a good [restaurant|film|doctor|song|school|hotel|recipe]",
    "[sing|stop|pause|record] [the|some|a|my favourite] [song|radio|game|video|tune|jazz] [now|please|]",
    "[call|phone|text|email|write to|wake] [my mother|the police|a taxi|my boss|my brother|my sister|the doctor|me]",
    "[open|close|turn on|switch off|lock|start] the [door|window|light|tv|radio|car|computer|heating]",
    "[set|stop|start] [an alarm|a timer|a reminder] [for seven|for ten minutes|for tomorrow|]",
    "[buy|order|send|bring|get] me [a pizza|some milk|flowers|a coffee|a new car|a beer|tickets]",
    (
        "[did|does|will|is] my [sister|mother|father|friend|wife|husband|dog|cat|neighbour] [love me"
        "|come home|call|married|well|at work|like pizza|hungry]"
    ),
    "where [is|are|did i put] my [keys|phone|glasses|car|money|wife|brother|shoes|bag]",
    (
        "what [did i|did we|did you|did he|did she] [eat|do|say|buy|dream|forget] [yesterday|last night"
        "|last week|this morning|today]"
    ),
    "what is [seven|three|twelve|one hundred] [plus|minus|times|divided by] [eight|four|nine|two]",
    "[solve|calculate|what is] [x plus two equals five|the square root of two|the sum of two numbers|pi]",
    "[how|what] do you [say|spell] [hello|house|love|thank you] in [french|german|spanish|latin|russian]",
    (
        "how do [you|i|we] [make|build|cook|grow|repair|clean|draw|paint] [a cake|pancakes|tea|a house|a"
        " table|tomatoes|a bike|soup]"
    ),
    (
        "[explain|teach me|tell me about] [quantum physics|the war|history|your life|politics|maths"
        "|democracy|how cars work|black holes]"
    ),
    (
        "what is [the meaning of this|the answer to everything|quantum physics|a verb|democracy|time"
        "|happiness|art|the best religion]"
    ),
    (
        "what is the [best|worst|fastest|cheapest|oldest|newest] [car|phone|film|book|team|city|wine"
        "|computer|language] [in the world|of all time|]"
    ),
    (
        "[are you|do you want to be|would you like to be] [human|alive|happy|tired|married|rich|a robot"
        "|real|bored|in love]"
    ),
    "do you [dream|sleep|eat|drink|have friends|have feelings|believe in god|know me|remember me|speak french]",
    "[how old|how tall|how clever|where|who] are you",
    "who [made|built|trained|wrote|owns|programmed] you",
    "what is your [name|age|job|favourite film|favourite song|opinion on politics|address|salary]",
    "what do you think [of|about] [politics|the president|football|love|god|my hair|my mother|money]",
    "what [time|day] [does|will] [the train|the bus|the shop|school|the film] [leave|open|close|start|end|come]",
    "what [day|date|year|month] [is it today|will it be|was it yesterday|are we in]",
    (
        "how many [people|cars|countries|days|planets|states|miles|calories] [are there|] in [the world"
        "|france|a year|our solar system|my town|a cake]"
    ),
    "how much [is|does] [a car|a house|bread|milk|gold|a ticket|the rent|your help] [cost|today|]",
    "what [number|letter|word|text|name|date] is [written|printed] [on|in] [it|the sign|the letter|the book]",
    "what is [behind|under|inside|on the back of] the [paper|frame|camera|wall|canvas]",
    "what [is|was] [outside the frame|there before|there yesterday|cut off]",
    "what [is|was] the [artist|painter|author] [thinking|feeling|drinking|listening to|called]",
    (
        "[write|tell me|invent] [a story|a poem|a song|a joke|a fairy tale|a speech|an email] [about"
        " love|about my dog|for my mother|]"
    ),
    "what [happens|comes|will they do] [next|then|later|at the end|in the film]",
    (
        "is [he|she|the man|the woman|my boss|the owner] [a doctor|from france|at home|in love|a good"
        " person|my friend|your father|guilty]"
    ),
    "who is [he|she|that man|that woman|your mother|your boss|your friend|the boss|in charge|calling]",
    "is it [legal|safe|healthy|cheap|dangerous|possible] to [eat this|smoke|swim here|drive|fly|invest]",
    "should i [buy it|marry her|call him|go|sell my car|study maths|take a pill|invest]",
    "what [medicine|pills|food|diet|exercise] should i take",
    "am i [ill|rich|pretty|late|right to leave|pregnant|in love]",
    "how do i [feel|look today|get to rome|get home|stop smoking|make money|find a job]",
    "[search|google|look up|browse|download] [the web|this|the news|my name|cats|it]",
    "which [team|party|horse|film|actor|singer] [won|will win|is the best|lost]",
    "what are the [news|lottery numbers|opening hours|rules|symptoms|lyrics|ingredients]",
    "how [did|does] [he|she|the story|the film|the game] [end|die|win|feel|begin]",
    "what language do [they|people|you|i] speak [there|in brazil|at home|]",
    "remind me [to call|of my meeting|tomorrow|to buy milk]",
    "what is [her|his|their] [name|age|job|address|phone number|mood|hobby|problem]",
    "[can|could|will] you [drive|come|lend me money|help me move|keep a secret|feel pain|hear me sing|remember this]",
    (
        "what is the [wifi password|distance to rome|speed of light|boiling point of water|time in tokyo"
        "|length of the nile]"
    ),
)
_PATTERNS["refusal"] = _FORBIDDEN

_PLAIN = ("greeting", "follow_color", "follow_where", "follow_list")
TRAINED: dict[str, tuple[str, ...]] = {
    kind: tuple(
        pattern if kind in _PLAIN else _LEAD + pattern + _TAIL for pattern in (*_PATTERNS.get(kind, ()), *sentences)
    )
    for kind, sentences in _SENTENCES["trained"].items()
}
"""Wordings for training by kind: patterns, and plain sentences by several writers, which vary more than patterns do."""

HELD_OUT["refusal"] = (
    "what is the artist's shoe size",
    "which gallery sold this painting and for how much",
    "did my brother like the concert",
    "tell me the phone number of your teacher",
    "what is the population of canada",
    "what will the weather be next week",
    "how tall is the woman who took this photo",
    "recommend a good book",
    "who is the king of england",
    "when did the owner buy it",
    "why is the painter so sad",
    "play some music for me",
)

_MARKS = re.compile(r"([\[\]|])")
_Part = str | tuple[tuple["_Part", ...], ...]
"""Plain text, or alternatives, each a sequence of parts."""


@functools.cache
def _parts(pattern: str) -> tuple[_Part, ...]:
    """The parsed pattern; cached, because parsing it for every question takes longer than a training step."""
    rows: list[list[list[_Part]]] = [[[]]]
    for piece in _MARKS.split(pattern):
        if piece == "[":
            rows.append([[]])
        elif piece == "|":
            rows[-1].append([])
        elif piece == "]":
            choice = tuple(tuple(row) for row in rows.pop())
            rows[-1][-1].append(choice)
        elif piece:
            rows[-1][-1].append(piece)
    ((row,),) = rows
    return tuple(row)


def _chosen(parts: tuple[_Part, ...], rng: random.Random) -> str:
    return "".join(part if isinstance(part, str) else _chosen(rng.choice(part), rng) for part in parts)


def word(patterns: tuple[str, ...], rng: random.Random, **parts: str) -> str:
    """A random wording of a random pattern, with or without a capital letter and a final punctuation mark."""
    text = _chosen(_parts(rng.choice(patterns)), rng)
    text = re.sub(r" +", " ", text.format(**parts)).strip()
    if rng.random() < 0.75:
        text = text[0].upper() + text[1:]
    if text[-1].isalpha():
        asks = not re.match(
            r"(count|name|find|list|describe|give|write|locate|point|identify|caption|title)\b", text.lower()
        )
        text += rng.choice(("?", "?", "?", "")) if asks else rng.choice((".", ".", ""))
    return text
