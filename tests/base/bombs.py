"""Chat templates that hang, fill the memory, or escape, if they are let. REVIEW: of a review of this project.

INVENTED: written afterwards, before anyone ran them. COMPILED: do it while they are compiled.
"""

_SHARED = "{% set n=namespace(l=['aaaaaaaaaa']) %}{% for i in range(26) %}{% set n.l=[n.l,n.l] %}{% endfor %}"
_SHARED_TWICE = (
    "{% set n=namespace(l=['a'],m=['a']) %}"
    "{% for i in range(40) %}{% set n.l=[n.l,n.l] %}{% set n.m=[n.m,n.m] %}{% endfor %}"
)

REVIEW = {
    "int square": "{% set n=namespace(x=3) %}{% for i in range(30) %}{% set n.x=n.x*n.x %}{% endfor %}",
    "shared list written": _SHARED + "{{ n.l }}",
    "shared list as json": _SHARED + "{{ n.l|tojson }}",
    "shared list compared": _SHARED_TWICE + "{{ n.l==n.m }}",
    "replace filter": "{{ ('a'*1000000)|replace('a','b'*3000) }}",
    "replace method": "{{ ('a'*1000000).replace('a','b'*3000) }}",
    "join filter": "{{ ('a'*1000000)|join('b'*3000) }}",
    "join method": "{{ ('b'*3000).join('a'*1000000) }}",
    "indent filter": "{{ ('\\n'*1000)|indent(3000000,true,true) }}",
    "expandtabs": "{{ ('\\t'*1000).expandtabs(3000000) }}",
    "width of a star": "{{ '%*d' % (3000000000,1) }}",
    "width of a star, filter": "{{ '%*d'|format(3000000000,1) }}",
    "nested format": "{{ '{:{}}'.format(1,3000000000) }}",
    "many wide formats": "{{ ('{0:>99999}'*30000).format(1) }}",
    "bytes repeated": "{% set x='a'.encode()*3000000000 %}",
    "bytes centred": "{% set x='a'.encode().center(3000000000) %}",
    "to_bytes": "{% set x=(1).to_bytes(3000000000,'big') %}",
    "title in a loop": "{% set x='ab '*5000000 %}{% for i in range(100000) %}{% set y=x|title %}{% endfor %}",
    "wordcount in a loop": "{% set x='ab '*5000000 %}{% for i in range(100000) %}{% set y=x|wordcount %}{% endfor %}",
    "text in a text": "{% set x='a'*8000000 %}{% set y='a'*4000000~'b' %}{{ y in x }}",
    "sort in a loop": "{% set x='ab'*8000000 %}{% for i in range(1000) %}{% set y=x|sort %}{% endfor %}",
    "urlize": "{{ ('http://a.b '*1000000)|urlize }}",
    "slice": "{% for s in 'ab'|slice(16000000) %}{% endfor %}",
    "batch": "{% for s in 'ab'|batch(16000000,'x') %}{% endfor %}",
    "macro": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "class": "{{ ''.__class__ }}",
    "class by filter": "{{ ''|attr('__class__') }}",
    "mro": "{{ ''['__class__'].__mro__ }}",
    "class by format": "{{ '{0.__class__}'.format(1) }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "self": "{{ self.__init__.__globals__ }}",
    "globals of a namespace": "{{ namespace.__init__.__globals__ }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "width of a year": "{{ strftime_now('%1000000000Y')|length }}",
    "class by map": "{{ [1]|map(attribute='__class__')|list }}",
    "sum of lists": "{{ ([[1]]*1000000)|sum(start=[])|length }}",
    "deep nest": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "power of powers": "{{ 9**9**9 }}",
    "repeat": "{{ 'a'*1000000000 }}",
    "long power": "{{ 10**(10**6) }}",
    "ljust": "{{ 'a'.ljust(3000000000) }}",
}

INVENTED = {
    "texts kept": "{% set n=namespace(l=[]) %}"
    "{% for i in range(900) %}{% set n.l=n.l+[('a'*16000000)~i] %}{% endfor %}",
    "center, mapped": "{{ range(99999)|map('string')|map('center',100000)|list|length }}",
    "indent of json": "{{ range(9999)|list|tojson(indent=1000000) }}",
    "long list as json": "{{ (['a'*16000000]*1000)|tojson }}",
    "long list as text": "{{ (['a'*16000000]*1000)|string|length }}",
    "long list put together": "{{ ((['a'*16000000]*1000)~'')|length }}",
    "join of a list": "{{ ''.join(['a'*1000000]*100000) }}",
    "translate": "{{ ('a'*1000000).translate({97:'b'*100000}) }}",
    "precision by name": "{{ '{:.{p}f}'.format(1.5,p=2000000000) }}",
    "width by name": "{{ '{:>{w}}'.format(1,w=3000000000) }}",
    "precision of a star": "{{ '%.*f' % (2000000000,1.5) }}",
    "equal hashes": "{{ range(0,2305843009213693951*99998,2305843009213693951)|unique|list|length }}",
    "callers of callers": "{% macro a() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call a() %}" * 40
    + "x"
    + "{% endcall %}" * 40,
    "loop of loops": "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "striptags": "{{ ('<'*8000000)|striptags }}",
    "wordwrap in a loop": "{% for i in range(9999) %}{% set y=('a '*8000000)|wordwrap(1) %}{% endfor %}",
    "split in a loop": "{% for i in range(9999) %}{% set y=('a'*16000000).split('a') %}{% endfor %}",
    "bytes in hexadecimal": "{% set x=('ab'*8000000).encode('utf-32').hex().encode('utf-32').hex() %}{{ x|length }}",
    "error that holds itself": _SHARED + "{{ raise_exception(n.l) }}",
    "long error": "{{ raise_exception('a'*16000000) }}",
    "long form of a time": "{{ strftime_now('%A %B '*2000000)|length }}",
    "half of a pair": "{{ '\\ud800' }}",
    "widest characters": "{{ '\\U0001f600'*16000000 }}",
    "zero bytes": "{{ '\\x00'*16000000 }}",
    "sum of texts": "{{ range(99999)|map('string')|map('list')|sum(start=[])|length }}",
    "integers added": "{% set n=namespace(x=2**9999) %}"
    "{% for i in range(99999) %}{% set n.x=n.x*(2**9999) %}{% endfor %}",
    "format of itself": "{{ [('{0:>99999}'*9000)]|map('format',1)|list|length }}",
    "class by map of attr": "{{ 'x'|map('attr','__class__')|list }}",
    "function of a method": "{{ ''.format.__func__ }}{{ ''.format.__self__.__class__ }}",
    "file of another name": "{% include '/etc/passwd' %}",
    "module": "{% import 'os' as os %}{{ os.getpid() }}",
}

COMPILED = {
    "replace": "{{ '" + "a" * 100000 + "'|replace('a','" + "b" * 30000 + "') }}",
    "indent": "{{ '" + "\\n" * 1000 + "'|indent(3000000,true,true) }}",
    "join": "{{ '" + "a" * 100000 + "'|join('" + "b" * 30000 + "') }}",
    "wordwrap": "{{ '" + "a " * 100000 + "'|wordwrap(1) }}",
    "urlize": ("{{ '" + "http://a.b " * 200 + "'|urlize }}") * 100,
    "title": "{{ 'a'|center(16000000)|title|title|title|title|title|title|title|title }}" * 20,
    "chain of names": "{{ x" + ".a" * 100000 + " }}",
    "chain of nots": "{{ " + "not " * 60000 + "1 }}",
    "long sum": "{{ 1" + "+1" * 60000 + " }}",
    "many branches": "{% if a %}" + "{% elif a %}" * 20000 + "{% endif %}",
    "product of powers": "{{ " + "*".join(["9**9999"] * 3000) + " }}",
    "signs": "{{ " + "-" * 200000 + "1 }}",
    "brackets": "{{ " + "[" * 80 + "1" + "]" * 80 + " }}",
    "many blocks": "".join(f"{{% block b{i} %}}{{% endblock %}}" for i in range(7000)),
}
