using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using System.Numerics;

namespace LanguageModel.Commands;

/// <summary>Options whose values are checked while the command line is read, with messages that say what is allowed.</summary>
internal static class Choices
{
    /// <summary>An option that takes the names of an enumeration, in lower case.</summary>
    public static Option<T> OneOf<T>(string name, string description, T standard) where T : struct, Enum
    {
        string[] names = [.. Enum.GetNames<T>().Select(value => value.ToLowerInvariant())];
        var option = new Option<T>(name)
        {
            Description = $"{description} [{string.Join('|', names)}]",
            DefaultValueFactory = _ => standard,
            CustomParser = result =>
            {
                string text = Text(result);
                if (names.Contains(text) && Enum.TryParse(text, ignoreCase: true, out T value))
                    return value;
                return Fail<T>(result, $"{name} {text}: choose {string.Join(", ", names)}.");
            },
        };
        return option;
    }

    /// <summary>An option that takes one of some names.</summary>
    public static Option<string> OneOf(string name, string description, string[] names) => new(name)
    {
        Description = $"{description} [{string.Join('|', names)}]",
        DefaultValueFactory = _ => names[0],
        CustomParser = result =>
        {
            string text = Text(result);
            return names.Contains(text) ? text : Fail<string>(result, $"{name} {text}: choose {string.Join(", ", names)}.");
        },
    };

    /// <summary>An option that takes a number of at least <paramref name="least"/>.</summary>
    public static Option<T> AtLeast<T>(string name, string description, T least, T standard)
        where T : struct, INumber<T> => new(name)
        {
            Description = description,
            DefaultValueFactory = _ => standard,
            CustomParser = result => Number(result, name, least) ?? default,
        };

    /// <summary>The same, without a value unless given.</summary>
    public static Option<T?> AtLeastIfGiven<T>(string name, string description, T least) where T : struct, INumber<T> => new(name)
    {
        Description = description,
        CustomParser = result => Number(result, name, least),
    };

    private static T? Number<T>(ArgumentResult result, string name, T least) where T : struct, INumber<T>
    {
        string text = Text(result);
        if (T.TryParse(text, CultureInfo.InvariantCulture, out T value) && T.IsFinite(value) && value >= least)
            return value;
        string kind = T.IsInteger(T.One / (T.One + T.One)) ? "a whole number" : "a number";
        return Fail<T?>(result, string.Create(CultureInfo.InvariantCulture, $"{name} {text}: use {kind} of at least {least}."));
    }

    private static string Text(ArgumentResult result) => result.Tokens.Count > 0 ? result.Tokens[0].Value : "";

    private static T? Fail<T>(ArgumentResult result, string message)
    {
        result.AddError(message);
        return default;
    }
}
