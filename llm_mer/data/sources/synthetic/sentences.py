"""Sentence templates: with words that reveal the emotion, and with neutral words."""

from __future__ import annotations

import numpy as np

NEUTRAL_EN = (
    "The {thing} is on the {place}|I will be there at {time}|We need {number} more {things}|She gave me the {thing} {day}|"
    "There is a {thing} next to the {place}|He said it starts at {time}|It takes {number} minutes by bus|"
    "They moved the {thing} to the {place}|You can find it near the {place}|The {place} opens at {time}|"
    "I talked to {name} about the {thing}|{name} is waiting at the {place}|That was {number} weeks ago|"
    "Tell {name} to bring the {thing}|We have {number} of them at home|The {thing} belongs to {name}|"
    "I put {number} {things} in the bag|It is the second door after the {place}|{name} will call again {day}|"
    "This is the {thing} I told you about|Look at the {thing} on the {place}|So you went to the {place} {day}|"
    "They changed the {thing} again {day}|And then {name} came in|Well the {place} is over there|"
    "He left the {thing} with {name}|I saw {name} at the {place} {day}|Maybe it is in the {place}|"
    "You said {number} people are coming|The train to the {place} leaves at {time}|{name} has the other {thing}|"
    "We talked about the {thing} {day}|I read the page about the {place}|Every {thing} has a number|"
    "It was under the {thing} all along|The list has {number} names|Ask {name} at the {place}|"
    "I think it was {name} who called|She works at the {place} now|The {things} are in the {place}|He wrote it down {day}"
).split("|")
NEUTRAL_ZH = (
    "{thing}在{place}旁边|我{time}到那里|我们还需要{number}个{thing}|她{day}把{thing}给了我|{place}那边有一个{thing}|"
    "他说{time}开始|坐车要{number}分钟|他们把{thing}搬到了{place}|你可以在{place}附近找到它|{place}{time}开门|"
    "我跟{name}说了{thing}的事|{name}在{place}等着|那是{number}个星期以前|让{name}带上{thing}|我们家里有{number}个|"
    "这个{thing}是{name}的|我在包里放了{number}个{thing}|过了{place}第二个门就是|{name}{day}再打电话|这就是我说的那个{thing}|"
    "你看{place}的{thing}|你{day}去了{place}|他们{day}又换了{thing}|后来{name}进来了|{place}就在那边|他把{thing}交给{name}了|"
    "我{day}在{place}看见{name}|可能在{place}里面|你说有{number}个人要来|去{place}的车{time}出发|另一个{thing}在{name}那里|"
    "我们{day}谈过{thing}|我看了{place}那一页|每个{thing}都有号码|它一直在{thing}下面|名单上有{number}个名字|去{place}问{name}|"
    "我想是{name}打来的|她现在在{place}上班|{thing}都在{place}里|他{day}写下来了"
).split("|")

EMOTIONAL_EN: dict[str, list[str]] = {
    "joy": (
        "I am so happy to see {name}|What a wonderful day at the {place}|We won and I love it|This is great news {name}|"
        "I passed the exam and I feel great|That is a lovely {thing} thank you|I am delighted with the {thing}|"
        "Everyone is laughing at the {place}|{name} and I are going to celebrate|I got the job I wanted|"
        "Everything turned out beautifully {day}|I am proud and glad about it|The party at the {place} was fantastic|"
        "My dream came true {day}|What a beautiful {thing}|I love the {thing} you gave me|We are so happy together|"
        "That joke was so funny|Happy birthday dear {name}|I feel full of energy {day}|This is the best {thing} ever|"
        "I am glad you came|It is a wonderful gift|{name} smiled at me and I love it|Great we can celebrate {day}|I enjoy it so much"
    ).split("|"),
    "sadness": (
        "I miss {name} so much|My dog died {day}|I feel so lonely at the {place}|Nobody came to my birthday|I lost everything {day}|"
        "We had to say goodbye at the {place}|I cried all night long|I am heartbroken about {name}|There is no hope any more|"
        "I failed again and I am sad|He never called me back|The old {place} is gone forever|I wish I could see {name} once more|"
        "The funeral is {day}|I feel empty and tired|My best friend moved away|I am so sorry for your loss|It hurts that she left me|"
        "I cannot stop crying|Everything is lost and gone|I am lonely without {name}|They sold our home and I cried|"
        "I feel blue {day}|The {thing} reminds me of her and I miss her|I am ashamed that I failed|So sad to say goodbye"
    ).split("|"),
    "anger": (
        "How dare you take my {thing}|I am furious with {name}|This is completely unfair|Stop lying to me right now|"
        "You ruined everything again|I hate it when you do that|Get out of my {place}|That idiot broke my {thing}|"
        "I am sick of your excuses|Do not ever speak to me like that|They cheated us and stole the {thing}|"
        "This is unacceptable {name}|Shut up and leave me alone|You never listen to me|I have had enough of this nonsense|"
        "Who gave you the right|This rude {name} makes me furious|I demand an answer right now|You lied to me {day}|"
        "I hate that stupid {thing}|It is an outrage|{name} stole my {thing} again|Enough stop it now|You had no right to touch it|"
        "What a disgrace at the {place}|I am so angry with you"
    ).split("|"),
    "fear": (
        "I am afraid of the {place}|Someone is following us|Did you hear that noise at the {place}|Please do not leave me alone|"
        "I am terrified of the {thing}|What if it crashes|My hands are shaking|There is a stranger at the {place}|"
        "I am scared it will happen again|Run or it will catch us|I had a nightmare about {name}|It could fall down on us|"
        "I am worried it is dangerous|Hide quickly they are coming|I panic when I see the {thing}|It is right behind you run|"
        "I dread going to the {place}|I cannot breathe I am so scared|Something moved in the dark|Please help me I am afraid|"
        "They are coming to get us|I am too scared to look|The noise came from the {place} and I am scared|"
        "It is a threat to all of us|What if they find us|I am frightened of {name}"
    ).split("|"),
    "surprise": (
        "Wow I did not expect the {thing}|You are kidding me|I can not believe it is {name}|What are you doing here|"
        "Oh my goodness where did the {thing} come from|That is incredible|I had no idea about the {place}|"
        "Is it really you {name}|No way that is unbelievable|I am amazed by the {thing}|Suddenly the {thing} was gone|"
        "They announced it out of nowhere|I never thought I would see {name}|What a twist|It appeared out of nowhere|"
        "Really are you serious|Unbelievable the {place} was empty|Since when does {name} speak French|Oh wow look at that {thing}|"
        "I am astonished|You found the {thing} no way|I never expected that {day}|Wait what did {name} say|"
        "That is an unexpected {thing}|Goodness I can not believe it|Wow {name} is here already"
    ).split("|"),
}
EMOTIONAL_ZH: dict[str, list[str]] = {
    "joy": (
        "见到{name}我太开心了|今天真是美好的一天|我们赢了太好了|这是最好的消息|我考试通过了真高兴|这个{thing}真漂亮谢谢你|"
        "我很喜欢这个{thing}|大家在{place}笑得很开心|我和{name}要好好庆祝|我得到了想要的工作太棒了|一切都很顺利真好|我为你骄傲|"
        "{place}的聚会太棒了|我的梦想实现了|多么美丽的{thing}|我喜欢你送的{thing}|我们在一起很幸福|这个笑话太好笑了|{name}生日快乐|"
        "我{day}感觉好极了|这是最棒的{thing}|很高兴你来了|这礼物太好了|{name}对我笑了真幸福|太好了我们庆祝吧|我太喜欢了"
    ).split("|"),
    "sadness": (
        "我很想念{name}|我的小狗{day}死了|我在{place}觉得好孤独|没有人来我的生日|我{day}失去了一切|我们在{place}告别了|我哭了一整夜|"
        "{name}让我心碎|再也没有希望了|我又失败了很难过|他再也没有打电话给我|以前的{place}没有了|真想再见{name}一面|葬礼在{day}|"
        "我觉得很空虚|好朋友搬走了|真遗憾我很伤心|她离开我很痛苦|我的眼泪止不住|一切都失去了|没有{name}我好孤独|家卖掉了我哭了|"
        "我{day}很伤心|看到{thing}我就想念她|失败了真难过|告别真让人伤心"
    ).split("|"),
    "anger": (
        "你怎么敢拿我的{thing}|我对{name}气死了|这太不公平了|不许再骗我|你又把一切都毁了|我讨厌你这样|滚出我的{place}|"
        "那个混蛋弄坏了我的{thing}|我受够了你的借口|不准这样跟我说话|他们骗了我们偷了{thing}|{name}太过分了|闭嘴别烦我|你从来不听我说|"
        "我再也忍不了了|谁给你的权利|{name}让我火冒三丈|我现在就要答复|你{day}骗了我|我讨厌那个{thing}|简直过分|{name}又偷了我的{thing}|"
        "够了住手|你凭什么碰它|{place}的服务太恶劣了|我真的很生气"
    ).split("|"),
    "fear": (
        "我害怕去{place}|有人在跟踪我们|你听到{place}的声音了吗我怕|求你别丢下我|我很怕那个{thing}|万一掉下来怎么办|我的手在发抖|"
        "{place}有个陌生人|我担心会再次发生|快跑它追来了|我梦见{name}是个噩梦|它可能会塌|我担心有危险|快躲起来他们来了|"
        "一看见{thing}我就恐慌|就在你后面快跑|我害怕{day}|我喘不过气太可怕|黑暗里有东西在动|救救我我害怕|他们来抓我们了|我不敢看|"
        "{place}的声音好吓人|这对我们是威胁|被发现了怎么办|我害怕{name}"
    ).split("|"),
    "surprise": (
        "哇没想到这个{thing}|你在开玩笑吧|不敢相信是{name}|你怎么在这里|天哪{thing}从哪儿来的|太不可思议了|{place}的事我一点都不知道|"
        "真的是你吗{name}|不会吧难以置信|这个{thing}让我吃惊|{thing}突然不见了|他们突然宣布了|没想到会看到{name}|竟然是这样|居然凭空出现|"
        "真的吗你是认真的|难以置信{place}是空的|{name}什么时候会说法语了|哇你看那个{thing}|我太吃惊了|你竟然找到了{thing}|{day}真没想到|"
        "等等{name}说什么|意外的{thing}|天哪不敢相信|哇{name}居然已经来了"
    ).split("|"),
}
SLOTS: dict[str, dict[str, list[str]]] = {
    "en": {
        "thing": "book|key|phone|letter|ticket|chair|picture|bag|cup|box|map|lamp|paper|coat|watch".split("|"),
        "things": "books|keys|letters|tickets|chairs|pictures|bags|cups|boxes|maps".split("|"),
        "place": "table|station|office|kitchen|market|school|bridge|library|garden|corner|shop|house".split("|"),
        "time": "two|three|four|nine|ten|noon|half past five".split("|"),
        "day": "today|yesterday|last week|on Monday|this morning|tomorrow".split("|"),
        "number": "two|three|five|six|eight|ten|twelve".split("|"),
        "name": "Anna|Peter|Maria|Tom|Lucy|David|Emma|Jack".split("|"),
    },
    "zh": {
        "thing": "书|钥匙|电话|信|票|椅子|照片|包|杯子|盒子|地图|灯|报纸|外套|手表".split("|"),
        "place": "桌子|车站|办公室|厨房|市场|学校|桥头|图书馆|花园|路口|商店|房子".split("|"),
        "time": "两点|三点|四点|九点|十点|中午|五点半".split("|"),
        "day": "今天|昨天|上个星期|星期一|今天早上|明天".split("|"),
        "number": "两|三|五|六|八|十|十二".split("|"),
        "name": "安娜|小明|玛丽|小王|露西|大卫|小李|老张".split("|"),
    },
}


def sentence(generator: np.random.Generator, language: str, emotion: str | None) -> str:
    """Draw a sentence whose words reveal ``emotion``; None (or ``neutral``) draws neutral words."""
    if emotion is None or emotion == "neutral":
        templates = NEUTRAL_EN if language == "en" else NEUTRAL_ZH
    else:
        templates = (EMOTIONAL_EN if language == "en" else EMOTIONAL_ZH)[emotion]
    template = templates[int(generator.integers(len(templates)))]
    slots = {name: words[int(generator.integers(len(words)))] for name, words in SLOTS[language].items()}
    return template.format(**slots)
