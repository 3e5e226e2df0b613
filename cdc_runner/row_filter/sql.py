"""A row filter: the text that a user writes, checked against a list of what is allowed, and written anew from its tree.

    parse_filter("region = 'EU' AND amount > 10").sql   ->   (("region" = 'EU') AND ("amount" > 10))

What runs is never the user's text but what this module writes from the parsed tree: names quoted, literals quoted,
functions with their schema. A node, an option of a node, a function or a type that is not listed here is refused by
name. What is listed is immutable and needs nothing but the row, so that a filter means the same at the initial load and
in the stream. The server of the source evaluates it, with the source's types and collations.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import sqlglot
from sqlglot import exp

from cdc_runner.errors import ErrorKind, RosettaError
from cdc_runner.schema import quote_identifier, quote_literal

MAX_LENGTH = 10_000
MAX_NODES = 2_000

_NUMBER = re.compile(r"\d{1,400}(\.\d{0,400})?([eE][+-]?\d{1,3})?|\.\d{1,400}([eE][+-]?\d{1,3})?")

_MOVING = re.compile(r"\b(now|today|tomorrow|yesterday)\b", re.IGNORECASE)
"""Words that dates and times take as of the moment of reading."""

_TYPES = {
    "BOOLEAN": "boolean", "SMALLINT": "smallint", "INT": "integer", "BIGINT": "bigint", "DECIMAL": "numeric",
    "FLOAT": "real", "DOUBLE": "double precision", "TEXT": "text", "VARCHAR": "varchar", "CHAR": "char", "DATE": "date",
    "TIME": "time", "TIMESTAMP": "timestamp", "TIMESTAMPNTZ": "timestamp", "TIMESTAMPTZ": "timestamptz", "UUID": "uuid",
    "INET": "inet", "INTERVAL": "interval",
}  # fmt: skip
_WITH_PARAMETERS = {"DECIMAL", "VARCHAR", "CHAR"}

_BINARY: dict[type[exp.Expression], str] = {
    exp.And: "AND", exp.Or: "OR", exp.EQ: "=", exp.NEQ: "<>", exp.GT: ">", exp.GTE: ">=", exp.LT: "<", exp.LTE: "<=",
    exp.NullSafeEQ: "IS NOT DISTINCT FROM", exp.NullSafeNEQ: "IS DISTINCT FROM", exp.Add: "+", exp.Sub: "-",
    exp.Mul: "*", exp.Div: "/", exp.Mod: "%", exp.DPipe: "||", exp.Like: "LIKE", exp.ILike: "ILIKE",
}  # fmt: skip

_FUNCTIONS: dict[type[exp.Expression], str] = {
    exp.Lower: "lower", exp.Upper: "upper", exp.Length: "length", exp.Abs: "abs", exp.Ceil: "ceil",
    exp.Floor: "floor", exp.MD5: "md5", exp.StartsWith: "starts_with", exp.Left: "left", exp.Right: "right",
}  # fmt: skip

_UNITS = {
    "MICROSECONDS", "MILLISECONDS", "SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "QUARTER", "YEAR", "DECADE",
    "CENTURY", "MILLENNIUM", "DOW", "DOY", "EPOCH", "ISODOW", "ISOYEAR",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RowFilter:
    """A checked filter.

    Attributes:
        sql: the condition as PostgreSQL is to evaluate it; columns stand unqualified and quoted.
        columns: names of the columns that it reads, in order of their names.
    """

    sql: str
    columns: tuple[str, ...]


class FilterRefused(RosettaError):
    """The filter holds something that a filter must not hold."""

    def __init__(self, reason: str) -> None:
        super().__init__(ErrorKind.CONFIG_INVALID, f"filter: {reason}")


def parse_filter(text: str) -> RowFilter:
    """Return a filter that is checked and written anew.

    Raises:
        FilterRefused: it is not one condition, or holds something that is not allowed; the text names it.
    """
    if len(text) > MAX_LENGTH:
        raise FilterRefused(f"it is longer than {MAX_LENGTH} characters")
    if "\x00" in text or not text.strip():
        raise FilterRefused("it is empty or holds a NUL character")
    try:
        trees = sqlglot.parse(text, dialect="postgres")
        if len(trees) != 1 or trees[0] is None:
            raise FilterRefused("it must be one condition")
        writer = _Writer()
        sql = writer.write(trees[0])
    except sqlglot.errors.SqlglotError as error:
        raise FilterRefused(f"it cannot be read: {_where(error)}") from None
    except RecursionError:
        raise FilterRefused("it is nested too deeply") from None
    if not writer.columns:
        raise FilterRefused("it names no column of the table")
    return RowFilter(sql, tuple(sorted(writer.columns)))


def _where(error: sqlglot.errors.SqlglotError) -> str:
    details = getattr(error, "errors", None)
    if details and details[0].get("line"):
        return f"line {details[0]['line']}, column {details[0]['col']}"
    return "it is not an SQL condition"


class _Writer:
    """Writes a tree as SQL, and refuses what it does not know."""

    def __init__(self) -> None:
        self.columns: set[str] = set()
        self._count = 0
        self._writers: dict[type[exp.Expression], Callable[[exp.Expression], str]] = {
            exp.Paren: self._paren, exp.Not: self._not, exp.Neg: self._neg, exp.In: self._in,
            exp.Between: self._between, exp.Is: self._is, exp.Null: self._null, exp.Boolean: self._boolean,
            exp.Literal: self._literal, exp.Column: self._column, exp.Cast: self._cast, exp.Any: self._any,
            exp.Escape: self._escape, exp.Coalesce: self._variadic("coalesce"), exp.Nullif: self._nullif,
            exp.Greatest: self._variadic("greatest"), exp.Least: self._variadic("least"),
            exp.Substring: self._substring, exp.Trim: self._trim, exp.StrPosition: self._position,
            exp.Round: self._round, exp.Extract: self._extract, exp.TimestampTrunc: self._truncated,
            exp.Dot: self._dot, exp.Case: self._case, exp.Collate: self._collate, exp.Interval: self._interval,
        }  # fmt: skip

    def write(self, node: object) -> str:
        """Return a node as SQL.

        Raises:
            FilterRefused: the node, or something below it, is not allowed.
        """
        if not isinstance(node, exp.Expression):
            raise FilterRefused("it is not a complete condition")
        self._count += 1
        if self._count > MAX_NODES:
            raise FilterRefused("it has too many parts")
        kind = type(node)
        if kind in _BINARY:
            return self._binary(node)
        if kind in _FUNCTIONS:
            return self._function(node)
        writer = self._writers.get(kind)
        if writer is None:
            raise FilterRefused(f"{_name(node)} is not allowed")
        return writer(node)

    def _only(self, node: exp.Expression, *names: str, ignored: tuple[str, ...] = ()) -> None:
        """Refuse a node that says more than is going to be written."""
        for name, value in node.args.items():
            if name not in names and name not in ignored and value not in (None, False, []):
                raise FilterRefused(f"{_name(node)} with {name} is not allowed")

    def _binary(self, node: exp.Expression) -> str:
        self._only(node, "this", "expression", "negate", ignored=("typed", "safe"))
        operator = _BINARY[type(node)]
        if node.args.get("negate"):
            if type(node) not in (exp.Like, exp.ILike):
                raise FilterRefused(f"{_name(node)} with negate is not allowed")
            operator = f"NOT {operator}"
        pattern = node.expression
        if type(node) in (exp.Like, exp.ILike) and isinstance(pattern, exp.Literal) and pattern.args.get("is_string"):
            return f"({self.write(node.this)} {operator} {quote_literal(str(pattern.this))})"
        return f"({self.write(node.this)} {operator} {self.write(pattern)})"

    def _function(self, node: exp.Expression) -> str:
        self._only(node, "this", "expression")
        given = [self.write(node.this)]
        if node.args.get("expression") is not None:
            given.append(self.write(node.expression))
        return f"pg_catalog.{_FUNCTIONS[type(node)]}({', '.join(given)})"

    def _paren(self, node: exp.Expression) -> str:
        self._only(node, "this")
        return f"({self.write(node.this)})"

    def _not(self, node: exp.Expression) -> str:
        self._only(node, "this")
        return f"(NOT {self.write(node.this)})"

    def _neg(self, node: exp.Expression) -> str:
        self._only(node, "this")
        return f"(- {self.write(node.this)})"

    def _in(self, node: exp.Expression) -> str:
        self._only(node, "this", "expressions")
        options = [self.write(one) for one in node.args.get("expressions") or []]
        if not options:
            raise FilterRefused("IN needs a list of values; a query is not allowed")
        return f"({self.write(node.this)} IN ({', '.join(options)}))"

    def _between(self, node: exp.Expression) -> str:
        self._only(node, "this", "low", "high")
        low, high = self.write(node.args.get("low")), self.write(node.args.get("high"))
        return f"({self.write(node.this)} BETWEEN {low} AND {high})"

    def _is(self, node: exp.Expression) -> str:
        self._only(node, "this", "expression", "negate")
        if not isinstance(node.expression, exp.Null | exp.Boolean):
            raise FilterRefused("IS takes NULL, TRUE or FALSE")
        word = "IS NOT" if node.args.get("negate") else "IS"
        return f"({self.write(node.this)} {word} {self.write(node.expression)})"

    def _null(self, node: exp.Expression) -> str:
        return "NULL"

    def _boolean(self, node: exp.Expression) -> str:
        return "true" if node.this else "false"

    def _literal(self, node: exp.Expression) -> str:
        if node.args.get("is_string"):
            if len(node.this) < 200 and _MOVING.search(node.this):
                raise FilterRefused("now, today, tomorrow and yesterday mean another time later; for text use LIKE")
            return quote_literal(str(node.this))
        if not _NUMBER.fullmatch(str(node.this)):
            raise FilterRefused("a number is not written as PostgreSQL writes numbers")
        return str(node.this)

    def _column(self, node: exp.Expression) -> str:
        # A qualifier can only mean the table itself: there is no other.
        self._only(node, "this", "table", "db")
        identifier = node.this
        if not isinstance(identifier, exp.Identifier):
            raise FilterRefused(f"{_name(identifier)} is not a column")
        name = str(identifier.this) if identifier.args.get("quoted") else str(identifier.this).lower()
        self.columns.add(name)
        return quote_identifier(name)

    def _cast(self, node: exp.Expression) -> str:
        self._only(node, "this", "to")
        return f"CAST({self.write(node.this)} AS {self._type(node.args['to'])})"

    def _type(self, node: exp.Expression) -> str:
        word = node.this.name if isinstance(node, exp.DataType) and hasattr(node.this, "name") else ""
        given = node.args.get("expressions") or []
        if isinstance(node.args.get("this"), exp.Interval):
            word, given = "INTERVAL", []
        if word not in _TYPES or (given and word not in _WITH_PARAMETERS) or node.args.get("nested"):
            raise FilterRefused("a cast to this type is not allowed")
        numbers = [str(one.this.this) for one in given]
        if not all(number.isdigit() and len(number) < 6 for number in numbers):
            raise FilterRefused("a type's parameters must be numbers")
        return _TYPES[word] + (f"({', '.join(numbers)})" if numbers else "")

    def _any(self, node: exp.Expression) -> str:
        inner = node.this.this if isinstance(node.this, exp.Paren) else node.this
        if not isinstance(inner, exp.Array) or not inner.expressions:
            raise FilterRefused("ANY takes an ARRAY of values")
        return f"ANY (ARRAY[{', '.join(self.write(one) for one in inner.expressions)}])"

    def _escape(self, node: exp.Expression) -> str:
        self._only(node, "this", "expression")
        if not isinstance(node.this, exp.Like | exp.ILike) or not isinstance(node.expression, exp.Literal):
            raise FilterRefused("ESCAPE belongs to LIKE and takes a text")
        return f"({self.write(node.this)[1:-1]} ESCAPE {self.write(node.expression)})"

    def _variadic(self, name: str) -> Callable[[exp.Expression], str]:
        def write(node: exp.Expression) -> str:
            self._only(node, "this", "expressions", ignored=("ignore_nulls",))
            return f"{name}({', '.join(self.write(one) for one in [node.this, *node.expressions])})"

        return write

    def _nullif(self, node: exp.Expression) -> str:
        self._only(node, "this", "expression")
        return f"nullif({self.write(node.this)}, {self.write(node.expression)})"

    def _substring(self, node: exp.Expression) -> str:
        self._only(node, "this", "start", "length")
        given = [self.write(node.args[name]) for name in ("this", "start", "length") if node.args.get(name) is not None]
        return f"pg_catalog.substr({', '.join(given)})"

    def _trim(self, node: exp.Expression) -> str:
        self._only(node, "this", "expression", "position")
        names = {"": "btrim", "BOTH": "btrim", "LEADING": "ltrim", "TRAILING": "rtrim"}
        name = names.get(str(node.args.get("position") or "").upper())
        if name is None:
            raise FilterRefused("this form of TRIM is not allowed")
        given = [self.write(node.this)]
        if node.args.get("expression") is not None:
            given.append(self.write(node.expression))
        return f"pg_catalog.{name}({', '.join(given)})"

    def _position(self, node: exp.Expression) -> str:
        self._only(node, "this", "substr")
        return f"pg_catalog.strpos({self.write(node.this)}, {self.write(node.args['substr'])})"

    def _round(self, node: exp.Expression) -> str:
        self._only(node, "this", "decimals")
        given = [self.write(node.this)]
        if node.args.get("decimals") is not None:
            given.append(self.write(node.args["decimals"]))
        return f"pg_catalog.round({', '.join(given)})"

    def _extract(self, node: exp.Expression) -> str:
        self._only(node, "this", "expression")
        return f"EXTRACT({_unit(node.this)} FROM {self.write(node.expression)})"

    def _truncated(self, node: exp.Expression) -> str:
        self._only(node, "this", "unit")
        return f"pg_catalog.date_trunc('{_unit(node.args['unit'])}', {self.write(node.this)})"

    def _dot(self, node: exp.Expression) -> str:
        self._only(node, "this", "expression")
        if str(getattr(node.this, "name", "")) != "pg_catalog" or not isinstance(node.expression, exp.Func):
            raise FilterRefused("only functions of PostgreSQL itself are allowed")
        # Behind a schema the parser takes every function as an unknown one.
        return self.write(sqlglot.parse_one(node.expression.sql(dialect="postgres"), dialect="postgres"))

    def _case(self, node: exp.Expression) -> str:
        self._only(node, "this", "ifs", "default")
        parts = ["CASE"]
        if node.args.get("this") is not None:
            parts.append(self.write(node.this))
        parts += [f"WHEN {self.write(one.this)} THEN {self.write(one.args['true'])}" for one in node.args["ifs"]]
        if node.args.get("default") is not None:
            parts.append(f"ELSE {self.write(node.args['default'])}")
        return f"({' '.join(parts)} END)"

    def _collate(self, node: exp.Expression) -> str:
        self._only(node, "this", "expression")
        if str(node.expression.this) != "C":
            raise FilterRefused('COLLATE is allowed with "C" only')
        return f'({self.write(node.this)} COLLATE pg_catalog."C")'

    def _interval(self, node: exp.Expression) -> str:
        self._only(node, "this", "unit")
        if not isinstance(node.this, exp.Literal):
            raise FilterRefused("INTERVAL takes a text")
        unit = node.args.get("unit")
        return f"CAST({quote_literal(f'{node.this.this} {_unit(unit)}' if unit else str(node.this.this))} AS interval)"


def _unit(node: object) -> str:
    word = str(getattr(node, "this", "")).upper().removesuffix("S" if isinstance(node, exp.Interval) else "")
    singular = word[:-1] if word.endswith("S") and word[:-1] in _UNITS else word
    if singular not in _UNITS:
        raise FilterRefused("this unit of time is not allowed")
    return singular


def _name(node: object) -> str:
    if isinstance(node, exp.Anonymous):
        return f"function {str(node.this)[:40]!a}"
    if isinstance(node, exp.Func):
        return f"function {node.sql_name().lower()}"
    return type(node).__name__
