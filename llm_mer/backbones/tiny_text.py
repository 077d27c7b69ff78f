"""Bilingual training text for the tiny backbones: neutral sentences, emotions and film opinions, drawn from a grammar.

All of it was written for this purpose; no corpus is used.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache

from llm_mer.prompting.tasks import Label, builtin_tasks

GENERATOR_VERSION = 1

# Valence in [-3, 3] of each emotion's sentences, as (low, high).
VALENCE_RANGES: dict[str, tuple[float, float]] = {
    "neutral": (-0.4, 0.4),
    "joy": (0.8, 3.0),
    "sadness": (-3.0, -0.8),
    "anger": (-3.0, -0.8),
    "fear": (-2.6, -0.6),
    "surprise": (-1.0, 1.4),
    "disgust": (-2.8, -0.8),
}

EMOTION_WORDS: dict[str, tuple[str, str]] = {
    "neutral": ("neutral", "平静"),
    "joy": ("joy", "高兴"),
    "sadness": ("sadness", "悲伤"),
    "anger": ("anger", "愤怒"),
    "fear": ("fear", "恐惧"),
    "surprise": ("surprise", "惊奇"),
    "disgust": ("disgust", "厌恶"),
}

PEOPLE_EN = (
    "I|we|my mother|my father|my sister|my brother|my friend|the teacher|the doctor|our neighbour|the children".split("|")
)
PEOPLE_ZH = "我|我们|妈妈|爸爸|姐姐|弟弟|朋友|老师|医生|邻居|孩子们|同事|经理|爷爷|奶奶".split("|")
TIMES_EN = (
    "today|yesterday|this morning|last night|on Monday|this week|at noon|in the evening|after lunch|before dinner".split("|")
)
TIMES_ZH = "今天|昨天|今天早上|昨晚|星期一|这个星期|中午|晚上|午饭后|晚饭前|明天|下午".split("|")
THINGS_EN = (
    "the table|the door|a book|the window|a chair|the report|the bus|the train|a letter|the kitchen|the office|a ticket|"
    "the phone|a bag|the meeting|the list|the paper|the car|the street|a cup of tea|the key|the room|the number|the map"
).split("|")
THINGS_ZH = "桌子|门|一本书|窗户|椅子|报告|公共汽车|火车|一封信|厨房|办公室|车票|电话|包|会议|名单|文件|汽车|街道|一杯茶|钥匙|房间|号码|地图".split(
    "|"
)
ACTIONS_EN = "put|moved|took|opened|closed|read|saw|found|brought|checked|left|kept|used|cleaned|counted|showed".split("|")
ACTIONS_ZH = "放了|搬了|拿了|打开了|关上了|看了|找到了|带来了|检查了|留下了|用了|打扫了|数了|给我看了".split("|")

EMOTIONAL_EN: dict[str, list[str]] = {
    "joy": (
        "I am so happy about {t}|what a wonderful day it is|I love this so much|we won the game and everyone is laughing|"
        "this is the best news of the year|I passed my exam and I am delighted|we are going to celebrate together|"
        "I got the job I always wanted|my best friend is coming home|the baby smiled at me for the first time|"
        "this party is fantastic|I feel great and full of energy|everything turned out beautifully|thank you it is a lovely gift|"
        "I am proud of you and glad you came|we are getting married in spring|that joke was so funny|my dream came true"
    ).split("|"),
    "sadness": (
        "I miss my grandmother so much|my dog died last night|I feel so lonely and empty|nobody came to my birthday|"
        "I lost everything I had|we had to say goodbye forever|I cried all night long|it hurts that she left me|"
        "I am heartbroken about {t}|there is no hope any more|I failed again and I am ashamed|he never called me back|"
        "our old house was sold and it is gone|I wish I could see him once more|the funeral is on Friday|"
        "I feel blue and tired of it all|my best friend moved away|I am sorry for your loss"
    ).split("|"),
    "anger": (
        "how dare you touch {t}|I am furious with you|this is an outrage and completely unfair|stop lying to me right now|"
        "you ruined everything again|I hate when you do that|get out of my house|that idiot broke my phone|"
        "I am sick of your excuses|don't you ever speak to me like that|they cheated us and stole our money|"
        "this is unacceptable and I demand an answer|shut up and leave me alone|you never listen to me|"
        "I have had enough of this nonsense|who gave you the right|he makes my blood boil|this rude service is a disgrace"
    ).split("|"),
    "fear": (
        "I am afraid of the dark|someone is following us|did you hear that noise in the basement|please don't leave me alone|"
        "I am terrified of {t}|what if the plane crashes|my hands are shaking and I cannot breathe|there is a stranger at the door|"
        "I am scared that it will happen again|run or it will catch us|I had a nightmare about it|the bridge could fall down|"
        "I am worried the test is dangerous|hide quickly they are coming|I panic when I see the water|the snake is right behind you|"
        "I dread tomorrow|it is a threat to all of us"
    ).split("|"),
    "surprise": (
        "wow I did not expect that|you are kidding me|I can't believe you found {t}|what are you doing here so suddenly|"
        "oh my goodness where did that come from|that is incredible news|I had no idea at all|since when do you speak French|"
        "is it really you after all these years|no way that is unbelievable|I am amazed by what happened|suddenly the lights went on|"
        "they announced it out of nowhere|I never thought I would see this|what a twist|it appeared out of thin air|really are you serious|"
        "astonishing the box was empty"
    ).split("|"),
    "disgust": (
        "that smell is disgusting|this food is rotten and gross|I feel sick looking at it|what a filthy room|"
        "there is a hair in my soup|that is revolting and nasty"
    ).split("|"),
}
EMOTIONAL_ZH: dict[str, list[str]] = {
    "joy": (
        "我太开心了|今天真是美好的一天|我特别喜欢这个|我们赢了比赛大家都在笑|这是今年最好的消息|我考试通过了真高兴|我们一起庆祝吧|"
        "我得到了一直想要的工作|我最好的朋友要回家了|宝宝第一次对我笑了|这个聚会太棒了|我感觉好极了充满力量|一切都很顺利太好了|"
        "谢谢你这礼物真漂亮|我为你骄傲很高兴你来了|我们春天要结婚了|这个笑话太好笑了|我的梦想实现了|生日快乐真幸福"
    ).split("|"),
    "sadness": (
        "我很想念奶奶|我的小狗昨晚死了|我觉得好孤独好空虚|没有人来参加我的生日|我失去了一切|我们不得不永远告别|我哭了一整夜|"
        "她离开我让我很痛苦|我的心都碎了|再也没有希望了|我又失败了很难过|他再也没有给我打电话|老房子卖掉了什么都没了|"
        "真希望能再见他一面|葬礼在星期五|我很伤心什么都不想做|好朋友搬走了|真遗憾眼泪止不住"
    ).split("|"),
    "anger": (
        "你怎么敢这样|我气死了|这太不公平了简直过分|不许再骗我|你又把一切都毁了|我讨厌你这样做|滚出我的家|那个混蛋摔坏了我的手机|"
        "我受够了你的借口|不准这样跟我说话|他们骗了我们偷了我们的钱|这不可接受我要一个答复|闭嘴别烦我|你从来不听我说|"
        "我再也忍不了了|谁给你的权利|他让我火冒三丈|服务态度太恶劣了"
    ).split("|"),
    "fear": (
        "我怕黑|有人在跟踪我们|你听到地下室的声音了吗|求你别丢下我一个人|我害怕极了|万一飞机掉下来怎么办|我的手在发抖喘不过气|"
        "门口有个陌生人|我担心它会再次发生|快跑它要追上来了|我做了一个噩梦|那座桥可能会塌|我担心检查有危险|快躲起来他们来了|"
        "一看见水我就恐慌|蛇就在你后面|我很怕明天|太吓人了我不敢看"
    ).split("|"),
    "surprise": (
        "哇我完全没想到|你在开玩笑吧|我不敢相信你找到了|你怎么突然在这里|天哪这是从哪儿来的|这消息太不可思议了|我一点都不知道|"
        "你什么时候会说法语了|这么多年真的是你吗|不会吧难以置信|我对发生的事很吃惊|灯突然亮了|他们突然宣布了|没想到我会看到这个|"
        "竟然是这样|居然凭空出现了|真的吗你是认真的|惊人盒子是空的"
    ).split("|"),
    "disgust": "那味道真恶心|这食物烂了太脏了|看着就想吐|房间脏得要命|我的汤里有根头发|真让人反胃".split("|"),
}

GOOD_EN = (
    "good|great|excellent|wonderful|amazing|fantastic|brilliant|beautiful|funny|hilarious|enjoyable|touching|clever|moving|"
    "awesome|perfect|charming|impressive|exciting|fun|nice|cool|entertaining|superb|lovely|powerful|cute|well made|worth seeing"
).split("|")
BAD_EN = (
    "bad|terrible|awful|horrible|boring|stupid|weak|disappointing|annoying|poor|dull|lame|ridiculous|slow|painful|cheesy|"
    "predictable|pointless|ugly|messy|waste of time|confusing|fake|unfunny|silly|worse|lousy|forgettable|not worth it|a disaster"
).split("|")
GOOD_ZH = "好|很棒|出色|精彩|惊人|完美|漂亮|有趣|搞笑|感人|聪明|动人|可爱|迷人|令人印象深刻|激动人心|好玩|不错|很酷|强大|值得一看|喜欢".split(
    "|"
)
BAD_ZH = "差|糟糕|可怕|无聊|愚蠢|薄弱|令人失望|烦人|很烂|沉闷|荒谬|太慢|痛苦|俗套|没意思|丑陋|混乱|浪费时间|难懂|假|不好笑|讨厌|不值得".split(
    "|"
)
FILM_EN = (
    "movie|film|acting|story|plot|script|music|ending|main character|actor|actress|director|scene|action|dialogue|book|"
    "animation|effect|show|trailer|cast|sequel|comedy|soundtrack|villain|hero|idea|character"
).split("|")
FILM_ZH = "电影|影片|表演|故事|情节|剧本|音乐|结局|主角|演员|女演员|导演|场景|动作|对话|书|动画|特效|节目|预告片|阵容|续集|喜剧|反派|英雄|角色".split(
    "|"
)
INTENSIFIERS_EN = {
    "": 1.0,
    "very ": 1.4,
    "really ": 1.3,
    "so ": 1.3,
    "pretty ": 0.8,
    "kind of ": 0.5,
    "a little ": 0.4,
    "extremely ": 1.7,
}
INTENSIFIERS_ZH = {
    "": 1.0,
    "太": 1.5,
    "非常": 1.5,
    "真的": 1.3,
    "特别": 1.4,
    "挺": 0.8,
    "有点": 0.4,
    "比较": 0.6,
    "极其": 1.7,
}


def choose(rng: random.Random, items: Sequence[str]) -> str:
    """One of ``items``, each with the same probability."""
    return items[rng.randrange(len(items))]


def neutral_sentence(rng: random.Random, language: str) -> str:
    """A sentence without emotion."""
    if language == "en":
        return f"{choose(rng, PEOPLE_EN)} {choose(rng, ACTIONS_EN)} {choose(rng, THINGS_EN)} {choose(rng, TIMES_EN)}"
    return f"{choose(rng, TIMES_ZH)}{choose(rng, PEOPLE_ZH)}{choose(rng, ACTIONS_ZH)}{choose(rng, THINGS_ZH)}"


def emotional_sentence(rng: random.Random, language: str) -> tuple[str, str, float]:
    """A sentence, the name of its emotion, and its valence in [-3, 3]."""
    emotion = choose(rng, list(EMOTION_WORDS))
    low, high = VALENCE_RANGES[emotion]
    valence = round(rng.uniform(low, high), 1)
    if emotion == "neutral":
        return neutral_sentence(rng, language), emotion, valence
    if language == "en":
        sentence = choose(rng, EMOTIONAL_EN[emotion]).format(t=choose(rng, THINGS_EN))
        if rng.random() < 0.4:
            sentence = f"{choose(rng, TIMES_EN)} {sentence}"
    else:
        sentence = choose(rng, EMOTIONAL_ZH[emotion])
        if rng.random() < 0.4:
            sentence = f"{choose(rng, TIMES_ZH)}{sentence}"
    return sentence, emotion, valence


def film_opinion(rng: random.Random, language: str) -> tuple[str, float]:
    """An opinion on a film and its valence in [-3, 3]; a negated one has the opposite sign."""
    sign = rng.choice((1, -1))
    intensifiers = INTENSIFIERS_EN if language == "en" else INTENSIFIERS_ZH
    adverb = choose(rng, list(intensifiers))
    valence = sign * 1.6 * intensifiers[adverb]
    patterns: tuple[str, ...]
    if language == "en":
        word, film = choose(rng, GOOD_EN if sign > 0 else BAD_EN), choose(rng, FILM_EN)
        patterns = (
            f"the {film} was {adverb}{word}",
            f"I thought the {film} is {adverb}{word}",
            f"and you know it was {adverb}{word}",
            f"um the {film} and the {choose(rng, FILM_EN)} were {adverb}{word}",
            f"it is a {adverb}{word} {film}",
        )
        if rng.random() < 0.15:
            return f"the {film} was not {word} at all", round(-0.8 * sign + rng.uniform(-0.3, 0.3), 1)
        sentence = patterns[rng.randrange(len(patterns))]
    else:
        word, film = choose(rng, GOOD_ZH if sign > 0 else BAD_ZH), choose(rng, FILM_ZH)
        patterns = (
            f"这部{film}{adverb}{word}",
            f"我觉得{film}{adverb}{word}",
            f"你知道它{adverb}{word}",
            f"{film}和{choose(rng, FILM_ZH)}都{adverb}{word}",
        )
        if rng.random() < 0.15:
            return f"这部{film}一点都不{word}", round(-0.8 * sign + rng.uniform(-0.3, 0.3), 1)
        sentence = patterns[rng.randrange(len(patterns))]
    return sentence, round(max(-3.0, min(3.0, valence + rng.uniform(-0.4, 0.4))), 1)


def training_line(rng: random.Random, language: str) -> str:
    """One training example: a neutral sentence, a sentence with its emotion or score, an opinion, or a label's translation."""
    english = language == "en"
    draw = rng.random()
    if draw < 0.12:
        return neutral_sentence(rng, language) + (" ." if english else "。")
    if draw < 0.62:
        sentence, emotion, valence = emotional_sentence(rng, language)
        word = EMOTION_WORDS[emotion][0 if english else 1]
        form_draw = rng.random()
        if form_draw < 0.45:
            return f"Text: {sentence}\nEmotion: {word}" if english else f"文本：{sentence}\n情绪：{word}"
        if form_draw < 0.7:
            return f"Text: {sentence}\nSentiment: {valence}" if english else f"文本：{sentence}\n情感：{valence}"
        return f"{sentence} . this is {word} ." if english else f"{sentence}。这是{word}。"
    if draw < 0.92:
        sentence, valence = film_opinion(rng, language)
        polarity_words = ("positive", "积极") if valence >= 0 else ("negative", "消极")
        form_draw = rng.random()
        if form_draw < 0.5:
            return f"Text: {sentence}\nSentiment: {valence}" if english else f"文本：{sentence}\n情感：{valence}"
        if form_draw < 0.8:
            return (
                f"Text: {sentence}\nEmotion: {polarity_words[0]}"
                if english
                else f"文本：{sentence}\n情绪：{polarity_words[1]}"
            )
        return sentence + (" ." if english else "。")
    label = rng.choice(rng.choice(builtin_label_sets()))
    return (
        f"{label.words['en']} = {label.words['zh']}" if rng.random() < 0.5 else f"{label.words['zh']} = {label.words['en']}"
    )


@cache
def builtin_label_sets() -> tuple[tuple[Label, ...], ...]:
    """The label sets of the built-in tasks, without repetition, so that a further task with the same labels changes no text."""
    sets: list[tuple[Label, ...]] = []
    for task in builtin_tasks().values():
        if task.labels and task.labels not in sets:
            sets.append(task.labels)
    return tuple(sets)


def generate_lines(seed: int, count: int) -> Iterator[str]:
    """Yield ``count`` training examples, alternately English and Chinese; the same seed gives the same text."""
    rng = random.Random(seed)
    for index in range(count):
        yield training_line(rng, "en" if index % 2 == 0 else "zh")
