using System.Text.Json.Nodes;

namespace FlaSharp.Tests.TestSupport;

/// <summary>The files that the peers made.</summary>
internal static class Golden
{
    public static string Folder(string name) => Path.Combine(AppContext.BaseDirectory, "Golden", name);

    public static JsonObject Json(string path) => JsonNode.Parse(File.ReadAllText(path))!.AsObject();
}
